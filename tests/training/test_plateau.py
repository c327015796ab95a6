"""The plateau schedule: the learning rate decays without improvement, in resumed runs too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.task.judged import RANK
from tests.tiers import examples
from tests.training.tiny import build_optimizer, tiny_config
from vision.core.checkpoints import Checkpoints
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.core.state import TrainState
from vision.core.workdir import read_records
from vision.training import train
from vision.training.plateau import Plateau
from vision.training.records import TIMES


def config_of(**schedule):
    config = default_config()
    config.optimizer.momentum = 0.0
    config.schedule = {'name': 'plateau', **schedule}
    return config


def start(config):
    params = {'kernel': jnp.ones(2)}
    optimizer = build_optimizer(config, optax.constant_schedule(0.1))
    return optimizer, TrainState(
        step=jnp.int32(0), params=params, batch_stats={}, opt_state=optimizer.init(params),
        ema_params=None, ema_batch_stats=None, rng=jax.random.key(0),
    )  # fmt: skip


def reference(values, patience, factor, rtol, cooldown):
    """PyTorch's ReduceLROnPlateau in Python; yields the scale after each evaluation."""
    best, bad, cooling, scale = np.inf, 0, 0, 1.0
    for value in values:
        if value < best * (1 - rtol):
            best, bad = value, 0
        else:
            bad += 1
        if cooling:
            cooling, bad = cooling - 1, 0
        elif bad == patience:
            scale, bad, cooling = scale * factor, 0, cooldown
        yield scale


@examples(10)
@given(
    scores=st.lists(st.integers(0, 8), min_size=1, max_size=12),
    patience=st.integers(1, 3),
    cooldown=st.integers(0, 2),
    metric=st.sampled_from([None, 'loss']),
)
def test_the_scale_is_the_rules(scores, patience, cooldown, metric):
    config = config_of(patience=patience, factor=0.5, cooldown=cooldown, metric=metric)
    plateau, (_, state) = Plateau.of(config.schedule), start(config)
    values = [s / 8 for s in scores]
    for value, scale in zip(values, reference(values, patience, 0.5, 1e-4, cooldown), strict=True):
        loss, cost = (0.3, value) if metric is None else (value, 0.3)
        state = plateau.observe(state, {'loss': loss}, cost, make_mesh())
        assert float(plateau.scale(state.opt_state)) == pytest.approx(scale)


def test_the_scale_multiplies_the_change_and_steps_do_not_count():
    config = config_of(patience=1, factor=0.1)
    plateau, (optimizer, state) = Plateau.of(config.schedule), start(config)
    state = plateau.observe(state, {}, 0.5, make_mesh())
    gradient, opt_state = {'kernel': jnp.ones(2)}, state.opt_state
    for _ in range(5):
        updates, opt_state = optimizer.update(gradient, opt_state, state.params)
        np.testing.assert_allclose(updates['kernel'], -0.1, rtol=1e-6)
    state = plateau.observe(state.replace(opt_state=opt_state), {}, 0.5, make_mesh())
    updates, _ = optimizer.update(gradient, state.opt_state, state.params)
    np.testing.assert_allclose(updates['kernel'], -0.01, rtol=1e-6)


def test_other_schedules_are_told_nothing():
    _, state = start(default_config())
    assert 'Plateau' not in str(jax.tree.structure(state.opt_state))


def digits(**training):
    config = tiny_config()
    # Better means less than half of the error, which not every evaluation reaches.
    config.schedule = {
        'name': 'plateau', 'patience': 1, 'factor': 0.5, 'rtol': 0.5, 'warmup': '2 steps',
    }  # fmt: skip
    config.training.update({'eval_every': '4 steps', 'log_every': '4 steps'} | training)
    return config


@pytest.mark.slow
def test_a_run_that_was_stopped_has_the_same_rates_and_bits(tmp_path):
    train(digits(), tmp_path / 'alone')
    for stop in ('10 steps', '14 steps', '24 steps'):
        train(digits(stop_after=stop), tmp_path / 'stopped')
    records, states = [], []
    for name in ('alone', 'stopped'):
        workdir = tmp_path / name
        records.append(
            [{k: v for k, v in r.items() if k not in TIMES} for r in read_records(workdir)]
        )
        with Checkpoints(workdir, RANK, read_only=True) as checkpoints:
            states.append(checkpoints.find('last'))
    assert records[0] == records[1] and states == [24, 24]
    rates = [r['train/lr'] for r in records[0] if 'train/lr' in r]
    scores = [r['validation/top1'] for r in records[0] if 'validation/top1' in r]
    scales = list(reference([1 - s for s in scores], 1, 0.5, 0.5, 0))
    # The result of an evaluation applies from the next step on.
    expected = [0.05 * scale for scale in [1.0, *scales[:-1]]]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert rates[-1] < 0.05


def test_without_a_validation_split_there_is_no_plateau(tmp_path):
    images, labels = np.zeros((80, 8, 8), np.uint8), np.arange(80) % 10
    np.savez(tmp_path / 'data.npz', x_train=images, y_train=labels)
    config = digits()
    config.data.update({'source': 'npz', 'path': str(tmp_path / 'data.npz')})
    with pytest.raises(UserError, match='needs a validation split'):
        train(config, tmp_path / 'run')
