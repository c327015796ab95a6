"""Updates: SAM against NumPy, with gradient accumulation, and user-defined ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.test_accumulate import BatchNormOnly
from tests.training.test_step import Linear, batch, gradient, setup
from tests.training.tiny import tiny_config
from vision.core.config import from_json, to_json
from vision.core.errors import UserError
from vision.training import train
from vision.training.step import make_update

SAM = {'update': {'name': 'sam', 'rho': 0.3}}


def sam_by_hand(state, examples, gradient_of, radius=0.3):
    """SAM as a user-defined update, named in a config by its module."""
    first, outcome = gradient_of(state.params, examples)
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(first)))
    moved = jax.tree.map(lambda p, g: p + radius * g / norm, state.params, first)
    return gradient_of(moved, examples)[0], outcome


def too_few(state):
    return state


def one_step(model, **changes):
    state, step = setup(model, **changes)
    start = jax.device_get(state.params)
    state, metrics = step(state, batch((1, 0, 1, 1)))
    return start, jax.device_get(state), jax.device_get(metrics)


def test_a_step_of_sam_is_the_papers():
    """Foret et al. 2021, algorithm 1: the gradient at w + ρ g / ‖g‖, applied at w."""
    start, state, metrics = one_step(Linear(), **SAM)
    data, mask, targets = batch(), np.array([1.0, 0, 1, 1]), np.eye(3)[[0, 2, 1, 2]]
    w = [np.asarray(start['head'][key], np.float64) for key in ('kernel', 'bias')]
    ascent = gradient(*w, data, targets, mask)
    norm = np.sqrt(sum((g**2).sum() for g in ascent))
    climbed = [p + 0.3 * g / norm for p, g in zip(w, ascent, strict=True)]
    descent = gradient(*climbed, data, targets, mask)
    for key, p, g in zip(('kernel', 'bias'), w, descent, strict=True):
        np.testing.assert_allclose(state.params['head'][key], p - 0.1 * g, atol=1e-6)
    _, plain, at_w = one_step(Linear())
    assert metrics['loss'] == at_w['loss'] and metrics['top1'] == at_w['top1']
    assert not np.allclose(state.params['head']['kernel'], plain.params['head']['kernel'])


def test_with_a_radius_of_zero_it_is_the_gradient():
    _, state, _ = one_step(Linear(), update={'name': 'sam', 'rho': 0.0})
    _, plain, _ = one_step(Linear())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), state.params, plain.params
    )


def test_in_parts_it_climbs_by_the_gradient_of_the_whole_batch():
    _, whole, _ = one_step(Linear(), **SAM)
    _, dealt, _ = one_step(Linear(), **SAM, training__accumulate=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        whole.params,
        dealt.params,
    )


def test_batchnorm_is_moved_by_the_first_pass_alone():
    _, climbed, _ = one_step(BatchNormOnly(), **SAM)
    _, plain, _ = one_step(BatchNormOnly())
    jax.tree.map(np.testing.assert_array_equal, climbed.batch_stats, plain.batch_stats)
    kernels = [s.params['head']['kernel'] for s in (climbed, plain)]
    assert not np.array_equal(*kernels)


def test_a_users_own_is_named_in_the_config():
    _, ours, _ = one_step(Linear(), **SAM)
    _, theirs, _ = one_step(Linear(), update={'name': f'{__name__}:sam_by_hand'})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours.params, theirs.params
    )


@pytest.mark.parametrize(
    ('update', 'says'),
    [
        ({'name': 'smam'}, "unknown update 'smam'.*Did you mean 'sam'.*Known: gradient, sam"),
        ({'name': 'sam', 'radius': 1.0}, "argument of update 'sam' 'radius'.*Known: rho"),
        ({'name': 'sam', 'rho': 'far'}, "rho='far' is not of type float"),
        ({'name': 'sam', 'rho': -1.0}, 'rho=-1.0 must be 0 or more'),
        ({'name': f'{__name__}:nothing'}, "has no 'nothing'"),
        ({'name': f'{__name__}:SAM'}, 'must be a class or function, not dict'),
        ({'name': f'{__name__}:too_few'}, r'must take \(state, examples, gradient_of\)'),
        ({'name': 'gradient', 'rho': 1.0}, "argument of update 'gradient' 'rho'"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_made(update, says, tmp_path):
    config = tiny_config()
    with config.unlocked():
        config['update'] = update
    with pytest.raises(UserError, match=says) as error:
        train(config, tmp_path / 'run')
    assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


def test_a_config_of_before_there_were_updates_has_the_gradient():
    config = tiny_config()
    old = from_json(to_json(config))
    del old['update']
    assert from_json(to_json(old))['update'].name == 'gradient'
    assert (
        dataclasses.is_dataclass(Linear)
        and make_update(config['update']).func.__name__ == 'gradient'
    )
