"""The predictions file has everything that evaluation computed for each example."""

import json

import numpy as np
import pytest

from tests.task.judged import judged, task_of, write_workdir
from vision.core.errors import UserError
from vision.evaluation.predictions import (
    predictions_file,
    read_predictions,
    write_predictions,
)
from vision.task import Task

pytestmark = pytest.mark.smoke

NAMES = ('ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu')


def predictions(paths=None):
    rng = np.random.default_rng(0)
    labels = rng.integers(7, size=20)
    return judged(np.arange(20), labels, rng.normal(size=(20, 7)), NAMES, paths), labels


def write(workdir, predictions, name='test'):
    write_workdir(workdir, NAMES)
    (workdir / 'report').mkdir(exist_ok=True)
    path = predictions_file(workdir / 'report', name)
    write_predictions(path, predictions)
    return path


def test_the_likeliest_classes_come_first():
    p, labels = predictions()
    np.testing.assert_array_equal(p.ids, np.arange(20))
    np.testing.assert_array_equal(p['label'], labels)
    assert p['top_classes'].shape == (20, 5)
    assert (np.diff(p['top_probabilities'], axis=1) <= 0).all()
    np.testing.assert_array_equal(p.correct, p['top_classes'][:, 0] == labels)


def test_the_likeliest_five_are_those_of_a_stable_sort():
    scores = np.random.default_rng(0).integers(0, 4, (500, 7)).astype(np.float32)
    scores[::7, 2] = -np.inf
    p = judged(np.arange(500), np.zeros(500), scores, NAMES)
    expected = np.argsort(-scores, axis=1, kind='stable')[:, :5]
    np.testing.assert_array_equal(p['top_classes'], expected)
    few = judged(np.arange(500), np.zeros(500), scores[:, :3], NAMES[:3])
    np.testing.assert_array_equal(few['top_classes'], np.argsort(-scores[:, :3], kind='stable'))


@pytest.mark.parametrize('paths', [None, [f'/a/é "{i}", \udcff.png' for i in range(20)]])
def test_written_and_read_again(tmp_path, paths):
    p, _ = predictions(paths)
    path = write(tmp_path, p)
    got = read_predictions(tmp_path)
    for name in ('id', 'label', 'rank', 'loss', 'top_classes', 'top_probabilities'):
        np.testing.assert_array_equal(got[name], p[name])
    np.testing.assert_array_equal(got.correct, p.correct)
    assert got.class_names == NAMES
    line = json.loads(path.read_text().splitlines()[3])
    assert line['id'] == 3 and line['class'] == NAMES[line['label']]
    assert [*line['predictions'][0]] == ['class', 'index', 'probability']
    if paths:
        assert got.paths[3] == '/a/é "3", ?.png' == line['path']


def test_what_is_no_number_survives(tmp_path):
    p = judged(np.arange(2), np.zeros(2), np.full((2, 7), np.nan), NAMES)
    write(tmp_path, p)
    assert np.isnan(read_predictions(tmp_path)['loss']).all()
    line = json.loads((tmp_path / 'report' / 'predictions_test.jsonl').read_text().splitlines()[0])
    assert line['loss'] is None and line['not_finite'] == {'loss': 'NaN'}
    assert line['predictions'][0]['not_finite'] == {'probability': 'NaN'}


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match=r'predictions_test.jsonl: no such predictions.*evaluate'):
        read_predictions(tmp_path)
    write(tmp_path, predictions()[0], 'validation')
    with pytest.raises(UserError, match='did you mean validation'):
        read_predictions(tmp_path, 'validatoin')
    path = write(tmp_path, predictions()[0])
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match='cannot be read'):
        read_predictions(tmp_path)


def test_a_model_may_have_more_outputs_than_there_are_classes(tmp_path):
    scores = np.random.default_rng(0).normal(size=(20, 10))
    more, same = (
        judged(np.arange(20), np.arange(20) % 7, s, NAMES) for s in (scores, scores[:, :7])
    )
    for name in same.columns:
        np.testing.assert_array_equal(more[name], same[name])
    write(tmp_path, more)


def test_numbers_of_a_users_columns_are_read_back():
    task = task_of(NAMES)
    records = [{'id': 0, 'path': None, 'd': None}, {'id': 1, 'path': None, 'd': 1.5}]
    np.testing.assert_array_equal(Task.from_records(task, records)['d'], [np.nan, 1.5])
