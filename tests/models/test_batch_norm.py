"""The form of BatchNorm for accelerators, compared with the formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import run_module
from vision.models import batch_norm, layers
from vision.models.layers import BatchNorm, plain_batch_norm

EPSILON = 1e-5
RNG = np.random.default_rng(0)


def draw(*shape, mean=0.0, std=1.0):
    return (mean + std * RNG.standard_normal(shape)).astype(np.float32)


@pytest.fixture
def fast(monkeypatch):
    """Uses the form of accelerators in all layers, on any backend."""

    def form(x, scale, bias, epsilon):
        return batch_norm.normalise(x, jnp.broadcast_to(scale, bias.shape), bias, epsilon)

    monkeypatch.setitem(layers._fast, 'batch_norm', form)


# A large mean, one huge image, rows that differ, a constant channel, and features without pixels.
INPUTS = {
    'plain': draw(6, 5, 7, 3),
    'large mean': draw(16, 8, 8, 3, mean=1e4),
    'bfloat16': draw(16, 8, 8, 3, mean=1e4, std=1e3).astype(jnp.bfloat16),
    'one huge image': draw(6, 5, 7, 3) + 1e4 * (np.arange(6) == 0)[:, None, None, None],
    'rows that differ': draw(6, 9, 7, 3) + 1e3 * (np.arange(9) == 4)[:, None, None],
    'constant': np.full((4, 3, 3, 2), 12345.678, np.float32),
    'features': draw(32, 4, mean=1e4),
    'one row': draw(8, 1, 1, 4, mean=1e4),
}
jitted = jax.jit(batch_norm.normalise, static_argnums=3)


@pytest.mark.parametrize('name', INPUTS)
def test_statistics_and_values_are_those_of_float64(name):
    x = jnp.asarray(INPUTS[name])
    exact, axes = np.asarray(x, np.float64), tuple(range(x.ndim - 1))
    scale, bias = draw(x.shape[-1]), draw(x.shape[-1])
    y, mean, var = jitted(x, scale, bias, EPSILON)
    assert y.dtype == mean.dtype == var.dtype == jnp.float32
    # Rounding of the mean to float32 is an error of its square in the variance.
    rounding = np.square(np.abs(exact).max() * 2.0**-23)
    np.testing.assert_allclose(mean, exact.mean(axes), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(var, exact.var(axes), rtol=1e-4, atol=rounding)
    expected = (exact - exact.mean(axes)) / np.sqrt(exact.var(axes) + EPSILON) * scale + bias
    if name != 'constant':  # 0 / √ε
        tolerance = 1e-4 + np.abs(exact).max() * 2e-7 / exact.std(axes).min()
        np.testing.assert_allclose(y, expected, rtol=1e-3, atol=tolerance)


def objective(form, weights):
    """Returns a function of x, scale and bias that uses all three results of a form."""

    def of(x, scale, bias):
        y, mean, var = form(x, scale, bias, EPSILON)
        rest = jnp.sum(jnp.sin(mean)) + 3 * jnp.sum(jnp.sqrt(1 + var))
        return jnp.sum(jnp.tanh(y) * weights) + rest

    return of


def both(shape):
    weights = draw(*shape)
    return objective(plain_batch_norm, weights), objective(batch_norm.normalise, weights)


@pytest.mark.parametrize('shape', [(6, 5, 7, 3), pytest.param((32, 4), marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_formulas(shape):
    x, scale, bias = draw(*shape, mean=2.0), draw(shape[-1]), draw(shape[-1])
    plain, fast = both(shape)
    for order in (lambda f: jax.grad(f, (0, 1, 2)), second_order):
        ours = jax.jit(order(fast))(x, scale, bias)
        theirs = jax.jit(order(plain))(x, scale, bias)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def second_order(f):
    """The gradient of the squared norm of the gradient."""
    return jax.grad(
        lambda *args: sum(jnp.sum(jnp.square(g)) for g in jax.grad(f, (0, 1, 2))(*args)), (0, 1, 2)
    )


def test_the_gradient_of_bfloat16_has_its_dtype_and_float32_sums():
    x = jnp.asarray(draw(64, 9, 9, 4, mean=3.0)).astype(jnp.bfloat16)
    scale, bias = draw(4), draw(4)
    plain, fast = both(x.shape)
    ours = jax.jit(jax.grad(fast, (0, 1, 2)))(x, scale, bias)
    exact = jax.jit(jax.grad(plain, (0, 1, 2)))(x.astype(jnp.float32), scale, bias)
    assert [g.dtype for g in ours] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(ours[0].astype(jnp.float32), exact[0], rtol=2**-7, atol=1e-4)
    for a, b in zip(ours[1:], exact[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_only_the_input_is_kept_for_the_backward_pass():
    """Of all activations, the backward pass gets the input in its own dtype and nothing else."""
    x = jnp.zeros((8, 4, 4, 3), jnp.bfloat16)
    kept = jax.eval_shape(
        lambda x: jax.vjp(lambda *a: batch_norm.normalise(*a, EPSILON), x, *jnp.ones((2, 3)))[1], x
    )
    large = [leaf for leaf in jax.tree.leaves(kept) if leaf.size >= x.size]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(x.shape, x.dtype)]


def test_layers_use_it_in_training_only(fast):
    x, norm = draw(4, 5, 5, 3, mean=3.0), BatchNorm(use_scale=False)
    variables = norm.init(jax.random.key(0), x, train=True)

    def program(train):
        def step(variables, x):
            return norm.apply(variables, x, train, mutable=['batch_stats'])

        return str(jax.make_jaxpr(step)(variables, x))

    assert 'custom_vjp' in program(True) and 'custom_vjp' not in program(False)
    with layers.xla_only():
        assert 'custom_vjp' not in program(True)


def test_cpus_use_the_plain_form():
    assert jax.default_backend() == 'cpu'
    assert batch_norm.batch_norm(draw(4, 3), 1.0, jnp.zeros(3), EPSILON) is None


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet50d', 'efficientnet_b0'])
@pytest.mark.parametrize('update', ['gradient', 'sam'])
def test_networks_train_alike_with_both_forms(monkeypatch, name, update):
    """Two steps in two parts, with recomputation where the network has it."""
    from tests.models.common import NARROW
    from tests.training.sharded_run import batch, config_of, mesh_of, recipe_of
    from vision.models import create_model
    from vision.training.step import init_state, make_train_step

    results, extra = [], {'remat': True} if name == 'efficientnet_b0' else {}
    model = create_model(name, num_classes=8, **NARROW[name], **extra)
    config, mesh = config_of('data', update, accumulate=2), mesh_of(1)
    config.optimizer.update({'name': 'sgd', 'lr': 0.05})
    recipe = recipe_of(config, model)

    def form(x, scale, bias, epsilon):
        return batch_norm.normalise(x, jnp.broadcast_to(scale, bias.shape), bias, epsilon)

    for replaced in (False, True):
        if replaced:
            monkeypatch.setitem(layers._fast, 'batch_norm', form)
        state, step = init_state(recipe, (32, 32, 3), mesh), make_train_step(recipe, mesh)
        for i in range(2):
            images = batch(i, mesh)
            large = jnp.repeat(jnp.repeat(images['image'], 4, axis=1), 4, axis=2)
            state, metrics = step(state, images | {'image': large})
        results.append(jax.device_get((metrics, state.batch_stats)))
    (ours, our_stats), (theirs, their_stats) = results
    for key in ('loss', 'grad_norm', 'param_norm'):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-3)
    for a, b in zip(jax.tree.leaves(our_stats), jax.tree.leaves(their_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-4)


@pytest.mark.slow
def test_it_sums_over_the_whole_mesh():
    result = run_module('tests.models.norm_on_a_mesh', devices=8)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '8 devices agree, and no image moves'
