"""Parameter averages against their formulas; both raw and averaged weights are evaluated."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.test_step import Linear, batch, setup
from tests.training.tiny import tiny_config
from vision.core.errors import UserError
from vision.core.workdir import read_records
from vision.evaluation.run import load_run
from vision.training import train
from vision.training.schedules import Averaging


def kernel(tree):
    return np.asarray(tree['head']['kernel'], np.float64)


@pytest.mark.parametrize('start', [0, 2, 4])
def test_polyaks_average_is_the_mean_from_its_start_on(start):
    state, step = setup(Linear(), training__polyak_from=f'{start} steps')
    seen = [kernel(state.params)]
    for t in range(1, 7):
        state, _ = step(state, batch())
        seen.append(kernel(state.params))
        expected = np.mean(seen[start : t + 1], axis=0) if t >= start else seen[-1]
        np.testing.assert_allclose(kernel(state.ema_params), expected, atol=1e-6)
    assert state.eval_variables['params'] is state.ema_params


def test_the_exponential_average_warms_up_to_its_decay():
    """tf.train.ExponentialMovingAverage(decay, num_updates): min(decay, (1 + t) / (10 + t))."""
    pull = Averaging(ema_decay=0.9).pull
    got = [float(pull(jnp.int32(t))) for t in (1, 8, 79, 80, 81, 10**6)]
    np.testing.assert_allclose(got, [9 / 11, 1 / 2, 9 / 89, 0.1, 0.1, 0.1], rtol=1e-5)


def test_without_an_average_there_is_none():
    state, step = setup(Linear())
    assert not Averaging()
    state, _ = step(state, batch())
    assert state.ema_params is None


def digits(polyak_from):
    config = tiny_config(training__duration='30 steps', training__eval_every='10 steps')
    config.training.polyak_from = polyak_from
    return config


def test_the_average_selects_and_both_are_recorded(tmp_path):
    train(digits(f'{15 * 32} examples'), tmp_path)
    records = read_records(tmp_path)
    average = {r['step']: r['validation/top1'] for r in records if 'validation/top1' in r}
    raw = {r['step']: r['validation_raw/loss'] for r in records if 'validation_raw/loss' in r}
    losses = {r['step']: r['validation/loss'] for r in records if 'validation/loss' in r}
    assert list(average) == list(raw) == [10, 20, 30]
    assert raw[10] == losses[10]  # no average yet: the same parameters
    assert raw[20] != losses[20] and raw[30] != losses[30]
    best = max(average, key=lambda step: (average[step], -step))
    assert load_run(tmp_path).step == best


def test_an_average_that_would_begin_after_the_run_is_refused(tmp_path):
    with pytest.raises(UserError, match='the whole run has 30'):
        train(digits('30 steps'), tmp_path)
