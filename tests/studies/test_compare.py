"""Comparison of runs: the figures are those of the runs, the test is McNemar's."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import NET, tiny_config
from vision.core.errors import UserError
from vision.evaluation.evals import predict_run
from vision.evaluation.figures import mcnemar
from vision.evaluation.run import load_run
from vision.studies import comparison as compare_lib
from vision.studies.comparison import compare, compare_tables, draw_curves, short_names
from vision.training import train


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    for name, lr in (('one', 0.05), ('two', 0.002)):
        train(tiny_config(optimizer__lr=lr), folder / name)
    train(tiny_config(training__stop_after='6 steps', data__validation=0.3), folder / 'early')
    return folder


@pytest.mark.parametrize(('b', 'c'), [(0, 0), (1, 0), (10, 3), (7, 7), (121, 59)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    """The p-value is twice the sum of the tail of the binomial distribution."""
    rng = np.random.default_rng(0)
    first = np.array([1] * b + [0] * c + [1] * 20 + [0] * 9, bool)
    second = np.array([0] * b + [1] * c + [1] * 20 + [0] * 9, bool)
    order = rng.permutation(len(first))
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    found = mcnemar(first[order], second[order])
    assert found[:2] == (b, c)
    assert found.p_value == pytest.approx(min(1, 2 * tail), abs=1e-12)
    assert mcnemar(second, first).p_value == pytest.approx(found.p_value)


def test_figures_and_significance(runs):
    result = compare([runs / 'one', runs / 'two'])
    one, two = result['runs']
    assert (one['run'], two['run']) == ('one', 'two')
    answers = [predict_run(load_run(runs / name)).predictions for name in ('one', 'two')]
    for row, answer in zip(result['runs'], answers, strict=True):
        assert row['model'] == NET and row['step'] == 24
        assert row['test']['count'] == len(answer) == 360
        assert row['test']['top1'] == answer.correct.mean()
        assert row['images_per_second'] > 0
    (pair,) = result['pairs']
    expected = mcnemar(*(a.correct for a in answers))
    assert (pair['first'], pair['second'], pair['error']) == ('one', 'two', None)
    assert (pair['only_first'], pair['only_second'], pair['p_value']) == tuple(expected)
    assert [t.row_count for t in compare_tables(result)] == [2, 1]


def test_a_run_that_goes_on_is_compared_too(runs, tmp_path):
    result = compare([runs / 'one', runs / 'early'])
    assert result['runs'][1]['test'] is None and result['runs'][1]['checkpoint'] == 6
    assert result['pairs'][0]['error'] is None
    draw_curves([runs / 'one', runs / 'two', runs / 'early']).savefig(tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_other_examples_are_not_compared(runs, monkeypatch):
    def other(run, split):
        predicted = predict_run(run, split)
        if run.path.name == 'two':
            predicted.predictions.columns['label'] = (predicted.predictions['label'] + 1) % 10
        return predicted

    monkeypatch.setattr(compare_lib, 'predict_run', other)
    (pair,) = compare([runs / 'one', runs / 'two'])['pairs']
    assert pair['error'] == 'the runs were not tested on the same examples'
    (pair,) = compare([runs / 'one', runs / 'two'], 'tset')['pairs']
    assert 'tset' in pair['error']


@pytest.mark.parametrize(
    ('names', 'says'),
    [(['one'], 'at least two'), (['one', 'one'], 'twice'), (['one', 'none'], 'does not exist')],
)
def test_what_cannot_be_compared(runs, names, says):
    with pytest.raises(UserError, match=says):
        compare([runs / name for name in names])


def test_names_are_as_short_as_they_can_be():
    paths = [Path('/a/x/run'), Path('/a/y/run'), Path('/a/z')]
    assert short_names(paths) == ['x/run', 'y/run', 'a/z']
    assert short_names(paths[1:]) == ['run', 'z']


@pytest.mark.parametrize(
    ('names', 'short'),
    [
        (['optimizer.lr=1,seed=0', 'optimizer.lr=2,seed=0'], ['lr=1', 'lr=2']),
        (['lr=1,seed=0', 'lr=1,seed=1'], ['seed=0', 'seed=1']),
        (['a.x=1,b.y=0', 'a.x=2,b.y=1'], ['x=1,y=0', 'x=2,y=1']),
        (['a.x=1,seed=0', 'a.x=1'], ['a.x=1,seed=0', 'a.x=1']),
        (['t=crop_8,_p=2_', 't=flip_lr'], ['t=crop_8,_p=2_', 't=flip_lr']),
        (['t=f_2,_9_', 't=f_2,_8_'], ['t=f_2,_9_', 't=f_2,_8_']),
    ],
)
def test_of_trials_the_values_that_differ_are_named(names, short):
    assert short_names([Path('/sweep') / name for name in names]) == short
    assert short_names([Path('/a/lr=1'), Path('/b/lr=1')]) == ['a/lr=1', 'b/lr=1']
