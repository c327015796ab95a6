"""Gradient accumulation: one update with the gradient of the whole batch."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.test_step import Linear, batch, setup

built = cache(setup)  # one program for all masks


def steps(model, count=3, data=None, **changes):
    state, step = built(model, **changes)
    state = jax.tree.map(lambda x: x.copy(), state)  # the step donates its state
    for _ in range(count):
        state, metrics = step(state, data or batch())
    return jax.device_get((state, metrics))


@pytest.mark.parametrize('parts', [2, 4])
@pytest.mark.parametrize('mask', [(1, 1, 1, 1), (1, 1, 0, 1), (0, 0, 0, 0)])
def test_loss_gradient_and_update_are_the_whole_batchs(parts, mask):
    """Masks and class weights give the microbatches unequal weights; the mean is still the batch's."""
    changes = {
        'loss__class_weights': (0.5, 1.0, 3.0), 'loss__label_smoothing': 0.1, 'optimizer__clip_norm': 0.1,
        'training__ema_decay': 0.9,
    }  # fmt: skip
    whole, figures = steps(Linear(aux=True), data=batch(mask), **changes)
    dealt, in_parts = steps(
        Linear(aux=True), data=batch(mask), training__accumulate=parts, **changes
    )
    for a, b in zip(
        jax.tree.leaves((whole.params, whole.ema_params, whole.opt_state, figures)),
        jax.tree.leaves((dealt.params, dealt.ema_params, dealt.opt_state, in_parts)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert whole.step == dealt.step == 3
    assert in_parts['count'] == sum(mask)


class BatchNormOnly(nn.Module):
    """BatchNorm and a linear classifier."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name='bn')(x)
        return nn.Dense(3, name='head')(x), {}


def test_batchnorm_sees_each_part_by_itself_and_moves_once_for_each():
    state, step = setup(BatchNormOnly(), training__accumulate=2)
    data = batch()
    state, _ = step(state, data)
    x = np.asarray(data['image'], np.float64).reshape(4, -1)
    mean, var = np.zeros(4), np.ones(4)
    for part in (x[0::2], x[1::2]):
        mean, var = 0.9 * mean + 0.1 * part.mean(0), 0.9 * var + 0.1 * part.var(0)
    np.testing.assert_allclose(state.batch_stats['bn']['mean'], mean, atol=1e-6)
    np.testing.assert_allclose(state.batch_stats['bn']['var'], var, atol=1e-6)


class Noise(nn.Module):
    """A loss that depends on dropout only."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, images, train):
        kept = nn.Dropout(0.5, deterministic=not train)(
            jnp.tile(jnp.arange(64.0) / 32, (len(images), 1))
        )
        bias = self.param('bias', nn.initializers.ones, (3,))
        return kept.mean(-1, keepdims=True) * bias * jnp.arange(3.0), {}


def test_each_part_has_its_own_dropout():
    """The microbatches differ only in dropout; a mask selects the loss of one of them."""
    seen = set()
    state, step = setup(Noise(), training__accumulate=4)
    for part in np.eye(4):
        data = batch(part) | {'label': jnp.zeros(4, jnp.int32)}
        _, figures = step(jax.tree.map(lambda x: x.copy(), state), data)
        seen.add(float(figures['loss']))
    assert len(seen) == 4
