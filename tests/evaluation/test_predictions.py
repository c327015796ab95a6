"""The file of predictions holds what evaluation knew of each example."""

import json

import numpy as np
import pytest

from vision.core.errors import UserError
from vision.evaluation.predictions import (
    from_scores,
    join,
    predictions_file,
    read_predictions,
    write_predictions,
)

pytestmark = pytest.mark.smoke

NAMES = ('ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu')


def predictions(paths=None):
    rng = np.random.default_rng(0)
    labels = rng.integers(7, size=20)
    halves = [
        from_scores(ids, labels[ids], rng.normal(size=(10, 7)).astype(np.float32), NAMES)
        for ids in (np.arange(10, 20), np.arange(10))
    ]
    return join(halves, paths), labels


def write(workdir, predictions, name='test'):
    (workdir / 'report').mkdir(exist_ok=True)
    path = predictions_file(workdir / 'report', name)
    write_predictions(path, predictions)
    return path


def test_parts_are_joined_in_the_order_of_the_ids():
    p, labels = predictions()
    np.testing.assert_array_equal(p.ids, np.arange(20))
    np.testing.assert_array_equal(p.labels, labels)
    assert p.top_classes.shape == (20, 5)
    assert (np.diff(p.top_probabilities, axis=1) <= 0).all()
    np.testing.assert_array_equal(p.correct, p.predicted == labels)


def test_the_likeliest_five_are_those_of_a_stable_sort():
    scores = np.random.default_rng(0).integers(0, 4, (500, 7)).astype(np.float32)
    scores[::7, 2] = -np.inf
    p = from_scores(np.arange(500), np.zeros(500, int), scores, NAMES)
    expected = np.argsort(-scores, axis=1, kind='stable')[:, :5]
    np.testing.assert_array_equal(p.top_classes, expected)
    few = from_scores(np.arange(500), np.zeros(500, int), scores[:, :3], NAMES[:3])
    np.testing.assert_array_equal(few.top_classes, np.argsort(-scores[:, :3], kind='stable'))


@pytest.mark.parametrize('paths', [None, [f'/a/é "{i}", \udcff.png' for i in range(20)]])
def test_written_and_read_again(tmp_path, paths):
    p, _ = predictions(paths)
    path = write(tmp_path, p)
    got = read_predictions(tmp_path)
    for name in ('ids', 'labels', 'rank', 'loss', 'top_classes', 'top_probabilities', 'correct'):
        np.testing.assert_array_equal(getattr(got, name), getattr(p, name))
    assert got.class_names == NAMES
    line = json.loads(path.read_text().splitlines()[3])
    assert line['id'] == 3 and line['class'] == NAMES[line['label']]
    assert [*line['predictions'][0]] == ['class', 'index', 'probability']
    if paths:
        assert got.paths[3] == '/a/é "3", ?.png' == line['path']


def test_what_is_no_number_survives(tmp_path):
    p = from_scores(np.arange(2), np.zeros(2, int), np.full((2, 7), np.nan), NAMES)
    write(tmp_path, p)
    assert np.isnan(read_predictions(tmp_path).loss).all()


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match=r'predictions_test.jsonl: there are no such.*evaluate'):
        read_predictions(tmp_path)
    write(tmp_path, predictions()[0], 'validation')
    with pytest.raises(UserError, match='did you mean validation'):
        read_predictions(tmp_path, 'validatoin')
    path = write(tmp_path, predictions()[0])
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match='cannot be read'):
        read_predictions(tmp_path)
