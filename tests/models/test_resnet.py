"""What ResNets take as arguments: pooling, embedding, squeeze-and-excitation, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision.models import create_model
from vision.models.base import abstract_variables
from vision.models.residual import SqueezeExcite, halve
from vision.models.resnet import power_pool, unit_norm
from vision.models.resnet_v2 import PreActivationBlock


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('power', [1.0, 2.5, 3.0])
def test_pooling_is_the_generalised_mean(power):
    x = draw(2, 3, 4, 5)
    expected = (np.maximum(x, 1e-6) ** power).mean((1, 2)) ** (1 / power)
    np.testing.assert_allclose(power_pool(x, power), expected, rtol=1e-5)


def test_features_of_unit_length_have_a_gradient_even_at_zero():
    x = draw(3, 8)
    x[1] = 0
    unit = unit_norm(x)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 0, 1], rtol=1e-6)
    gradient = jax.grad(lambda x: unit_norm(x).sum())(x)
    assert np.isfinite(gradient).all()


def test_halving_averages_the_pixels_that_there_are():
    x = draw(1, 3, 4, 2)
    expected = np.stack([x[:, :2].mean(1), x[:, 2]], axis=1).reshape(1, 2, 2, 2, 2).mean(3)
    np.testing.assert_allclose(halve(x), expected, rtol=1e-6)


def test_excitation_weights_each_channel_of_an_image_by_one_factor():
    x, module = draw(2, 3, 3, 32), SqueezeExcite()
    y = jax.jit(lambda x: module.init_with_output(jax.random.key(0), x)[0])(x)
    factors = np.asarray(y) / x
    assert ((factors > 0) & (factors < 1)).all()
    np.testing.assert_allclose(factors, factors[:, :1, :1].repeat(3, 1).repeat(3, 2), rtol=1e-5)


@pytest.mark.parametrize(
    ('channels', 'reduced'), [(16, 8), (64, 8), (192, 16), (256, 16), (320, 24), (2048, 128)]
)
def test_excitation_reduces_as_in_timm(channels, reduced):
    """`make_divisible(channels / 16, 8, round_limit=0)`."""
    x = jax.ShapeDtypeStruct((1, 1, 1, channels), jnp.float32)
    shapes = jax.eval_shape(lambda x: SqueezeExcite().init(jax.random.key(0), x), x)['params']
    assert shapes['fc1']['kernel'].shape == (channels, reduced)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('stage_sizes', 'parameters'), [((2, 2, 2, 2), 11_779_624), ((3, 4, 6, 3), 21_960_416)]
)
def test_basic_blocks_with_excitation_have_timms_parameters(stage_sizes, parameters):
    """timm's `seresnet18` and `seresnet34`."""
    model = create_model('seresnet50', block='basic', stage_sizes=stage_sizes)
    shapes = abstract_variables(model, (64, 64, 3))['params']
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.slow
def test_the_embedding_is_what_search_takes():
    model = create_model('sscd_resnet50', num_classes=3, stage_sizes=(1, 1), embedding=8)

    @jax.jit
    def run(x):
        return model.init_with_output(jax.random.key(0), x, train=False)[0]

    logits, endpoints = run(draw(2, 16, 16, 3))
    assert (logits.shape, endpoints['features'].shape) == ((2, 3), (2, 8))
    np.testing.assert_allclose(np.linalg.norm(endpoints['features'], axis=1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('bottleneck', [False, True])
def test_dropout_is_inside_the_residual_branch(bottleneck):
    block = PreActivationBlock(8, 1, bottleneck, dropout=0.5)
    x = jnp.asarray(draw(2, 4, 4, 32 if bottleneck else 8))

    @jax.jit
    def run(x):
        variables = block.init(jax.random.key(0), x, False)
        outputs = [
            block.apply(variables, x, True, rngs={'dropout': key}, mutable=['batch_stats'])[0]
            for key in jax.random.split(jax.random.key(1))
        ]
        plain = block.clone(dropout=0.0)
        return outputs, block.apply(variables, x, False), plain.apply(variables, x, False)

    (first, second), evaluated, plain = run(x)
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_array_equal(evaluated, plain)
