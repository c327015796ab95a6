"""The benchmark of indexes: its vectors, and its figures."""

import numpy as np
import pytest

from benchmarks import search


@pytest.fixture(scope='module')
def mixture():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 20)) + 1
    vectors = centres[rng.integers(0, 3, 120)] + 0.1 * rng.normal(size=(120, 20))
    return search.fitted(vectors.astype(np.float32))


def test_vectors_of_photos_come_first_and_others_resemble_them(mixture, monkeypatch):
    monkeypatch.setattr(search, '_CHUNK', 500)
    assert len(mixture.asked) == 30 and len(mixture.real) == 90
    every = np.concatenate([*mixture.chunks(1200)])
    np.testing.assert_array_equal(every, np.concatenate([*mixture.chunks(1200)]))
    np.testing.assert_array_equal(every[:90], mixture.real)
    assert len(np.unique(every, axis=0)) == 1200
    # A rotation keeps cosines, and what is drawn has the mean and the spread of what is real.
    real, drawn = every[:90], every[90:]
    assert np.linalg.norm(real.mean(0) - drawn.mean(0)) < 0.3 * np.linalg.norm(real.std(0))
    assert drawn.std() == pytest.approx(real.std(), rel=0.1)
    asked = mixture.queries()
    assert asked.shape == (200, 20)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (asked, every)]
    order = np.argsort(-unit[0] @ unit[1].T, axis=1)[:, :10]
    assert search._nearest(mixture, 1200, asked) == [{*row} for row in order.tolist()]


@pytest.mark.slow
def test_figures_of_all_kinds(mixture):
    found = search.search_speed(mixture, 1200, threads=(1,), rounds=1)
    assert found['vectors'] == 1200 and found['real'] == 90 and found['size'] == 20
    assert [row['kind'] for row in found['kinds']] == ['ivfpq', 'hnsw', 'exact']
    recalls = [row['recall@10'] for row in found['kinds']]
    assert recalls[1] > 0.95 and recalls[2] == 1
    for row in found['kinds']:
        assert all(row[name] > 0 for name in ('build_seconds', 'build_mb', 'file_mb', 'open_ms'))
        assert row['ratio'] == pytest.approx(row['ms_faiss'] / row['ms'])
