"""Calls of several steps: the bits do not depend on their lengths, and no event is inside one."""

import json
import math
import signal
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiers import examples
from tests.training import test_resume as resume
from tests.training.tiny import tiny_config
from vision.core.durations import Every
from vision.training import train
from vision.training.calls import Calls
from vision.training.diagnosis import debugging
from vision.training.hooks import EarlyStopping, Hook, needs_every_step
from vision.training.records import Interval
from vision.training.setup import setup
from vision.training.step import init_state

# A moving average, dropout, BatchNorm and augmentation, with events at uneven distances.
SETTINGS = {
    'training__duration': '14 steps',
    'training__eval_every': '9 steps',
    'training__log_every': '4.5 steps',
    'training__ema_decay': 0.9,
}
EVENTS = {5, 9, 12, 14}  # 4.5 and 13.5 are rounded up


class Ends(Hook):
    """Records the last step of each call and the number of images it was given."""

    every_step = False

    def __init__(self):
        self.ends, self.firsts, self.images = [], [], []

    def before_step(self, step):
        self.firsts.append(step)

    def after_step(self, step, batch, metrics):
        self.ends.append(step)
        self.images.append(len(batch['image']) if batch else 0)
        assert metrics['loss'].shape == ()


@given(st.fractions(Fraction(1, 50), 1000), st.integers(0, 5000))
@examples(60)
def test_the_next_event_is_the_first_step_at_which_it_is_due(period, step):
    every = Every(period)
    following = every.after(step)
    assert following > step and every.due(following)
    assert not any(every.due(s) for s in range(step + 1, following))


def test_metrics_of_a_call_add_up_like_those_of_its_steps():
    losses, finite = [0.1, 0.2, 0.7, 9.0], [True, True, True, False]
    single, call = Interval(), Interval()
    for i in range(3):
        single.add(5 + i, {'finite': True, 'count': 4.0, 'loss': losses[i], 'lr': losses[i]})
    columns = {'finite': finite, 'count': [4.0] * 4, 'loss': losses, 'lr': losses}
    call.add(5, dict(columns), 3)
    assert single.read() is None and call.read() is None
    assert single.to_json() == call.to_json()
    call.add(8, dict(columns), 4)
    assert call.read() == 11


def test_the_state_does_not_depend_on_the_lengths_of_calls():
    run = setup(tiny_config(training__steps_per_call=5, training__ema_decay=0.9))
    calls, found = Calls(run, 0), []
    for lengths in ([4, 3], [1, 1, 5]):
        state, first, losses = init_state(run.recipe, run.input_shape, run.mesh), 1, []
        for count in lengths:
            state, metrics, last = calls.take(state, calls.load(first, count), count)
            losses += np.asarray(metrics['loss'])[:count].tolist()
            assert float(last['loss']) == losses[-1]
            first += count
        found.append((losses, jax.tree.leaves(jax.device_get(state.replace(rng=None)))))
    (losses, leaves), (other_losses, other_leaves) = found
    assert losses == other_losses and len(set(losses)) == 7
    assert all(np.array_equal(a, b) for a, b in zip(leaves, other_leaves, strict=True))


@pytest.mark.slow
def test_the_bits_do_not_depend_on_how_a_run_is_cut_into_calls(tmp_path, monkeypatch):
    """Parameters, statistics, averages, optimizer state and records."""
    monkeypatch.setattr(Calls, 'choose', lambda self, seconds: None)  # whatever the machine's speed
    whole, hook = {**SETTINGS, 'training__steps_per_call': 5}, Ends()
    train(tiny_config(**whole), tmp_path / 'whole')
    train(tiny_config(**whole, training__stop_after='7 steps'), tmp_path / 'cut')
    other = {**SETTINGS, 'training__steps_per_call': 3}
    train(tiny_config(**other), tmp_path / 'cut', [hook])
    resume.assert_same(tmp_path / 'cut', tmp_path / 'whole', steps=14)
    # No event is inside a call, and a call has at most three steps.
    assert set(hook.ends) >= EVENTS - {5} and hook.ends == sorted(set(hook.ends))
    counts = [end - first + 1 for first, end in zip(hook.firsts, hook.ends, strict=True)]
    assert sum(counts) == 7 and max(counts) == 3
    # Only a call of one step has a batch to show.
    assert hook.images == [32 if count == 1 else 0 for count in counts]


def test_a_hook_on_each_step_makes_calls_of_one():
    class Watch(Hook):
        def after_step(self, step, batch, metrics):
            pass

    assert needs_every_step(Watch())
    assert not needs_every_step(Ends())
    assert not needs_every_step(EarlyStopping(None, lambda scores: ()))


def test_slow_steps_have_short_calls_and_debuggers_single_steps():
    run = setup(tiny_config(training__steps_per_call=50))
    calls = Calls(run, 0)
    for seconds, most in ((1e-6, 50), (0.1, 5), (20.0, 1), (math.nan, 1), (1e-6, 50)):
        calls.choose(seconds)
        assert calls.most == most
    # The default of CPUs is one step.
    assert Calls(setup(tiny_config()), 0).most == 1
    for what in ('nans', 'no_jit'):
        with debugging([what]):
            assert Calls(run, 0).most == 1


FLAGS = (*resume.FLAGS, '--config.training.steps_per_call=7')
HARD = (
    '--config.update.name=sam',
    '--config.training.accumulate=2',
    '--config.training.shard=fsdp',
    '--config.data.repeats=2',
    '--config.preprocess.mixup=0.2',
)


@pytest.mark.slow
@pytest.mark.parametrize('more', [(), HARD], ids=['plain', 'hard'])
@pytest.mark.parametrize('devices', [1, 8])
def test_any_recipe_has_the_bits_of_other_calls(tmp_path, devices, more):
    """Calls of seven steps have the bits of calls of two, and round like the single step."""
    ways = {'7': FLAGS, '2': (*FLAGS[:-1], '--config.training.steps_per_call=2'), '1': resume.FLAGS}
    for name, flags in ways.items():
        done = resume.start(tmp_path / name, devices=devices, flags=(*flags, *more))
        assert done.returncode == 0, done.stderr
    resume.assert_same(tmp_path / '7', tmp_path / '2')
    rows = zip(resume.records(tmp_path / '7'), resume.records(tmp_path / '1'), strict=True)
    for ours, single in rows:
        assert ours.keys() == single.keys()
        for key in {'train/loss', 'train/param_norm', 'validation/loss'} & ours.keys():
            assert ours[key] == pytest.approx(single[key], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('moment', 'code'), [('step', -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_run_stopped_after_a_call_continues_with_the_same_bits(tmp_path, moment, code):
    assert resume.start(tmp_path / 'alone', flags=FLAGS).returncode == 0
    name = moment if moment == 'step' else int(moment)
    stopped = resume.start(tmp_path / 'stopped', name, 30, flags=FLAGS)
    assert stopped.returncode == code, stopped.stderr
    assert resume.start(tmp_path / 'stopped', flags=FLAGS).returncode == 0
    resume.assert_same(tmp_path / 'stopped', tmp_path / 'alone')


@pytest.mark.slow
def test_one_program_serves_all_lengths(tmp_path, monkeypatch):
    monkeypatch.setattr(Calls, 'choose', lambda self, seconds: None)  # whatever the machine's speed
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event)
    )

    class Count(Ends):
        def after_step(self, step, batch, metrics):
            super().after_step(step, batch, metrics)
            self.ends[-1] = (step, sum(e.endswith('backend_compile_duration') for e in compiled))

    hook = Count()
    settings = {'training__duration': '23 steps', 'training__eval_every': '23 steps'}
    train(tiny_config(training__steps_per_call=4, **settings), tmp_path, [hook])
    steps, counts = zip(*hook.ends, strict=True)
    assert len(set(np.diff(steps))) > 2, json.dumps(steps)
    assert len(set(counts[1:])) == 1
