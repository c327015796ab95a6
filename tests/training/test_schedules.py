"""Schedules: the papers' milestones, warm-up and linear scaling."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiers import examples
from vision.core import durations
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.training.schedules import SCHEDULES, make_schedule, peak_rate

TOTAL = 1000  # steps, of 10 to an epoch


def to_steps(text, key):
    return durations.to_steps(text, 100, 1000, key)


def schedule_of(lr=0.1, total=TOTAL, **changes):
    batches = changes.pop('lr_for_batch', None), changes.pop('batch_size', 128)
    schedule = default_config().schedule.to_dict() | changes
    return make_schedule(schedule, peak_rate(lr, *batches), total, to_steps)


def rates(steps, **changes):
    schedule = schedule_of(**changes)
    return [float(schedule(step)) for step in steps]


def test_step_divides_at_the_given_durations():
    """He et al. 2015, section 4.2 (CIFAR-10): .1, divided by 10 at 32k and at 48k of 64k."""
    got = rates([0, 499, 500, 749, 750, 999], name='step', at=('500 steps', '75 epochs'))
    np.testing.assert_allclose(got, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_step_counts_from_the_runs_start_behind_a_warmup_too():
    got = rates([99, 100, 499, 500], name='step', at=('50 epochs',), warmup='100 steps')
    np.testing.assert_allclose(got, [0.099, 0.1, 0.1, 0.01], rtol=1e-6)


def test_step_with_a_factor_for_each_duration():
    """He et al. 2015 (ResNet-110): .01 for 400 steps, then .1, then divided by 10."""
    changes = {'name': 'step', 'at': ('400 steps', '500 steps'), 'factor': (10.0, 0.1)}
    np.testing.assert_allclose(
        rates([0, 399, 400, 499, 500], lr=0.01, **changes), [0.01, 0.01, 0.1, 0.1, 0.01], rtol=1e-6
    )


@pytest.mark.parametrize('warmup', [0, 30])
def test_exponential_is_googlenets(warmup):
    """Szegedy et al. 2014, section 6: −4 % every 8 epochs, in steps, after the warm-up."""
    steps = [warmup + s for s in (0, 79, 80, 159, 160, 800)]
    got = rates(steps, name='exponential', warmup=f'{warmup} steps')
    expected = [0.1 * 0.96**k for k in (0, 0, 1, 1, 2, 10)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_cosine_and_linear_begin_at_the_rate_and_end_at_the_fraction():
    for warmup in (0, 100):
        middle = (TOTAL + warmup) // 2
        steps, half = (warmup, middle, TOTAL), 0.1 * (1 + 0.2) / 2
        for name in ('cosine', 'linear'):
            got = rates(steps, name=name, end=0.2, warmup=f'{warmup} steps')
            np.testing.assert_allclose(got, [0.1, half, 0.02], rtol=1e-5)
    quarter = rates([250], name='cosine')[0]
    assert quarter == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)) / 2, rel=1e-5)


ARGUMENTS = {'step': {'at': ('60 epochs',)}, 'exponential': {'every': '3 epochs'}}


@pytest.mark.parametrize('name', SCHEDULES)
@examples(10)
@given(lr=st.floats(1e-4, 10), warmup=st.integers(1, 599))
def test_a_warmup_rises_from_zero_and_ends_exactly_at_the_rate(name, lr, warmup):
    schedule = schedule_of(lr, name=name, warmup=f'{warmup} steps', **ARGUMENTS.get(name, {}))
    steps = np.unique(np.linspace(0, warmup, 9).astype(int))
    rising = np.array([float(schedule(int(s))) for s in steps])
    assert (np.diff(rising) > 0).all() and rising[0] == 0
    assert rising[-1] == np.float32(lr)
    rest = [float(schedule(s)) for s in (warmup + 1, (warmup + TOTAL) // 2, TOTAL - 1, TOTAL)]
    assert all(0 <= rate <= np.float32(lr) for rate in rest)


@examples(10)
@given(batch=st.integers(1, 10**5), times=st.integers(1, 50))
def test_the_rate_grows_with_the_batch(batch, times):
    """Goyal et al. 2017, section 2.1: k times the batch size, k times the learning rate."""
    one = schedule_of(name='cosine', batch_size=batch, lr_for_batch=256)
    many = schedule_of(name='cosine', batch_size=times * batch, lr_for_batch=256)
    assert float(one(0)) == pytest.approx(0.1 * batch / 256, rel=1e-6)
    for step in (0, 333, 900):
        assert float(many(step)) == pytest.approx(times * float(one(step)), rel=1e-5)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'name': 'cosin'}, "Did you mean 'cosine'"),
        ({'name': 'cosine', 'ende': 0.1}, "Did you mean 'end'"),
        ({'name': 'cosine', 'end': 'a'}, 'of type float'),
        ({'name': 'cosine', 'end': -0.1}, r'must be in \[0, 1\]'),
        ({'name': 'cosine', 'warmup': '100 epochs'}, 'the whole run has 1000'),
        ({'name': 'cosine', 'warmup': '-1 epochs'}, 'negative'),
        ({'name': 'step', 'at': ('50 epochs', '20 epochs')}, 'must be increasing'),
        ({'name': 'step', 'at': ('2 epochs',), 'warmup': '3 epochs'}, 'after the warm-up'),
        ({'name': 'step', 'at': ('-2 epochs',)}, 'negative'),
        ({'name': 'step', 'at': ('2 epochs',), 'factor': (0.1, 0.2)}, '2 values for 1'),
        ({'name': 'step', 'at': ('2 epochs',), 'factor': 0.0}, 'above 0'),
        ({'name': 'step', 'at': '2 epochs'}, 'a tuple of str'),
        ({'name': 'exponential', 'every': '0 epochs'}, 'above 0'),
        ({'name': 'exponential', 'factor': -1.0}, 'above 0'),
        ({'name': 'plateau', 'factor': 1.0}, 'Factor'),
        ({'name': 'plateau', 'patience': 0}, 'patience=0 must be 1 or more'),
        ({'name': 'plateau', 'metric': 'top2'}, "one of 'loss' or None"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        schedule_of(**changes)
