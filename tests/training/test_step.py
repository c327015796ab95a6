"""One training step against the papers' formulas in NumPy."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision.core.config import default_config
from vision.core.mesh import make_mesh
from vision.task import losses
from vision.training.setup import make_recipe
from vision.training.step import init_state, make_train_step


class Linear(nn.Module):
    """Softmax regression, with an auxiliary head of the same form."""

    aux: bool = False
    num_classes: int = 3

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        logits = nn.Dense(3, name='head')(x)
        other = nn.Dense(3, name='aux')(x) if self.aux else None
        return logits, {'features': x, **({'aux': (other,)} if self.aux and train else {})}


def setup(model, **changes):
    config = default_config()
    config.preprocess.std = (1 / 255,)
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace('__', '.'): value})
    mesh = make_mesh()
    schedule = lambda step: 0.1 / (1 + step)  # noqa: E731
    recipe = dataclasses.replace(make_recipe(config, model, 'abc', 10), schedule=schedule)
    return init_state(recipe, (2, 2, 1), mesh), make_train_step(recipe, mesh)


def batch(mask=(1, 1, 1, 1)):
    rng = np.random.default_rng(0)
    return {
        'image': jnp.asarray(rng.normal(size=(4, 2, 2, 1)), jnp.float32),
        'label': jnp.asarray([0, 2, 1, 2]),
        'id': jnp.arange(4),
        'mask': jnp.asarray(mask, jnp.float32),
    }


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gradient(kernel, bias, data, targets, mask):
    """Returns the gradient of the mean cross-entropy over the unmasked examples, by hand."""
    x = np.asarray(data['image'], np.float64).reshape(4, -1)
    delta = (softmax(x @ kernel + bias) - targets) * mask[:, None] / mask.sum()
    return x.T @ delta, delta.sum(0)


@pytest.mark.parametrize('mask', [(1, 1, 1, 1), (1, 0, 1, 0)])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('decay', [0.0, 0.01])
def test_two_steps_of_momentum_sgd_are_the_formula(mask, smoothing, decay):
    state, step = setup(Linear(), loss__label_smoothing=smoothing, weight_decay=decay)
    kernel, bias = (np.asarray(state.params['head'][k], np.float64) for k in ('kernel', 'bias'))
    data, counted = batch(mask), np.array(mask, np.float64)
    targets = np.eye(3)[np.asarray(data['label'])] * (1 - smoothing) + smoothing / 3
    velocity = [0.0, 0.0]
    for k in range(2):
        grads = gradient(kernel, bias, data, targets, counted)
        velocity = [0.9 * v + g for v, g in zip(velocity, (grads[0] + decay * kernel, grads[1]))]
        kernel, bias = kernel - 0.1 / (1 + k) * velocity[0], bias - 0.1 / (1 + k) * velocity[1]
        state, metrics = step(state, data)
        assert metrics['lr'] == pytest.approx(0.1 / (1 + k))
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
    np.testing.assert_allclose(state.params['head']['kernel'], kernel, atol=1e-6)
    np.testing.assert_allclose(state.params['head']['bias'], bias, atol=1e-6)
    assert int(state.step) == 2
    assert metrics['count'] == counted.sum()


def test_the_auxiliary_heads_loss_has_its_weight():
    """The gradient of the auxiliary head is its weight times the gradient at weight 1."""
    moved = {}
    for weight in (1.0, 0.3):
        state, step = setup(Linear(aux=True), loss__aux_weight=weight)
        before = np.asarray(state.params['aux']['kernel'])
        after, metrics = step(state, batch())
        moved[weight] = np.asarray(after.params['aux']['kernel']) - before
        main = metrics['loss']
    np.testing.assert_allclose(moved[0.3], 0.3 * moved[1.0], rtol=1e-4, atol=1e-7)
    assert np.abs(moved[1.0]).max() > 1e-3
    state, step = setup(Linear())
    plain, _ = step(state, batch())
    assert main > 0 and plain.params.keys() == {'head'}


def test_the_moving_average_is_one():
    state, step = setup(Linear(), training__ema_decay=0.2)
    average = np.asarray(state.params['head']['kernel'], np.float64)
    for t in range(1, 4):
        state, _ = step(state, batch())
        decay = min(0.2, (1 + t) / (10 + t))
        new = np.asarray(state.params['head']['kernel'], np.float64)
        average = decay * average + (1 - decay) * new
    np.testing.assert_allclose(state.ema_params['head']['kernel'], average, atol=1e-6)
    assert state.eval_variables['params'] is state.ema_params


def test_the_state_is_donated_and_one_compilation_serves_all_steps():
    state, step = setup(Linear())
    kernel = state.params['head']['kernel']
    state, _ = step(state, batch())
    assert kernel.is_deleted()
    state, _ = step(state, batch())
    assert step._cache_size() == 1


def test_the_initial_state_does_not_depend_on_when_it_is_made():
    a, b = (setup(Linear())[0] for _ in range(2))
    np.testing.assert_array_equal(a.params['head']['kernel'], b.params['head']['kernel'])


def test_smoothed_labels_are_probabilities():
    targets = losses.smooth_labels(jnp.eye(5), 0.2)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[0], [0.84, 0.04, 0.04, 0.04, 0.04], rtol=1e-6)


def test_cross_entropy_is_scikit_learns():
    from sklearn.metrics import log_loss

    logits = np.random.default_rng(0).normal(size=(20, 5)) * 3
    labels = np.arange(20) % 5
    ours = losses.softmax_cross_entropy(jnp.asarray(logits), jax.nn.one_hot(labels, 5)).mean()
    assert float(ours) == pytest.approx(log_loss(labels, softmax(logits)), rel=1e-5)
