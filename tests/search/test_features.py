"""The figures about features equal scikit-learn's on the same vectors."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from tests.processes import run_module
from vision.search import features
from vision.search.index import unit


@pytest.fixture(scope='module')
def clouds():
    """Overlapping clouds of three classes, more than one block: (train, labels, test, labels)."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12))
    labels = rng.integers(0, 3, 1700)
    points = (centres[labels] + 1.2 * rng.normal(size=(1700, 12))).astype(np.float32)
    return points[:1000], labels[:1000], points[1000:], labels[1000:]


@pytest.mark.parametrize('k', [1, 5, 20])
def test_nearest_neighbours_vote(clouds, k):
    train, train_labels, test, _ = clouds
    peer = KNeighborsClassifier(k, metric='cosine').fit(train, train_labels)
    np.testing.assert_array_equal(
        features.nearest_vote(unit(train), train_labels, unit(test), k), peer.predict(test)
    )


def test_retrieval(clouds):
    _, _, test, labels = clouds
    found = features.retrieval(unit(test), labels)
    scores = unit(test).astype(np.float64) @ unit(test).T
    others = ~np.eye(len(test), dtype=bool)
    precisions = [
        average_precision_score(labels[others[i]] == labels[i], scores[i, others[i]])
        for i in range(len(test))
    ]
    assert found['map'] == pytest.approx(np.mean(precisions), abs=1e-6)
    order = NearestNeighbors(n_neighbors=11, metric='cosine').fit(test).kneighbors(test)[1]
    for k in (1, 5, 10):
        hit = (labels[order[:, 1 : k + 1]] == labels[:, None]).any(axis=1)
        assert found[f'recall@{k}'] == pytest.approx(hit.mean(), abs=1e-9)


def test_an_image_alone_of_its_class_is_no_query():
    rng = np.random.default_rng(1)
    vectors = unit(rng.normal(size=(9, 4)).astype(np.float32))
    alone = features.retrieval(vectors, np.array([0, 0, 0, 0, 1, 1, 1, 1, 2]))
    assert 0 < alone['map'] < 1 and alone['recall@10'] == 1


def test_the_command_judges_a_run(workdir):
    done = run_module('experiments.search', f'--workdir={workdir}', 'evaluate', '--format=json')
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures['count'] == 360 and figures['split'] == 'test'
    assert all(
        0.8 < figures[k] <= 1 for k in ('knn', 'linear_probe', 'recall@1', 'recall@10', 'map')
    )


def test_nothing_to_ask_for_is_no_figure():
    alone = features.retrieval(unit(np.eye(3, dtype=np.float32)), np.arange(3))
    assert alone == {'recall@1': None, 'recall@5': None, 'recall@10': None, 'map': None}


def test_what_was_learned_from_does_not_judge(workdir):
    done = run_module('experiments.search', f'--workdir={workdir}', '--split=train', 'evaluate')
    assert done.returncode == 2 and 'another split' in done.stderr
