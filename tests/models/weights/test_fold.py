"""Folding batch normalisation does not change the logits."""

import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.generator import images, uniform
from tests.models.common import DEEP, FAMILIES, shapes_of
from tests.tiers import quick, split
from vision.core.errors import UserError
from vision.models import MODELS, create_model
from vision.models.base import abstract_variables
from vision.models.layers import BatchNorm, Conv
from vision.models.resnet_v2 import ResNetV2
from vision.models.summary import default_model
from vision.models.weights.fold import FoldedModel, fold_batch_norm

SMALL = {
    'vgg11_bn': {'stem': 'small'},
    'resnet18': {'stem': 'small'},
    'resnext50_32x4d': {'stem': 'small'},
    'resnet34_c': {'stem': 'small'},
    'googlenet': {'stem': 'small', 'aux_heads': False},
    'inception_v3': {'stem': 'small', 'aux_heads': False},
    'resnet20': {},
    'resnet50_v2': {'stem': 'small'},
    'efficientnet_b0': {'depth': 0.1},
    'efficientnet_lite0': {'depth': 0.1, 'stem': 'small'},
    'seresnet50': {'stem': 'small', 'stage_sizes': (1, 1), 'widths': (32, 64)},
    'resnet50d': {'stage_sizes': (1, 1), 'widths': (32, 64)},
    'sscd_resnet50': {'stage_sizes': (1, 1), 'widths': (32, 64)},
    'wide_resnet40_4': {'stage_sizes': (1, 1, 1)},
}
# In the quick tests each stage of a ResNet has one block.
QUICK = {
    'resnext50_32x4d': {'stem': 'small', 'stage_sizes': (1, 1)},
    'resnet20': {'stage_sizes': (1, 1, 1)},
    'resnet50_v2': {'stem': 'small', 'stage_sizes': (1, 1)},
}


def random_variables(model, shape):
    """Returns variables whose norms matter: random statistics, scales and biases."""

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if leaf.ndim > 1:
            return uniform(name, leaf.shape) * np.sqrt(3 / np.prod(leaf.shape[:-1]), dtype='f4')
        positive = name.endswith(("['var']", "['scale']"))
        return 1 + 0.4 * uniform(name, leaf.shape) if positive else 0.2 * uniform(name, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model, shape))


def evaluate(model, variables, x):
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)


@pytest.mark.parametrize('name', split(SMALL, QUICK))
def test_folded_gives_the_same_logits_and_features(name):
    model = create_model(name, num_classes=10, **(QUICK if quick() else SMALL)[name])
    variables = random_variables(model, (32, 32, 3))
    folded, folded_variables = fold_batch_norm(model, variables)
    x = images(32, 4)
    logits, endpoints = evaluate(model, variables, x)
    got, got_endpoints = evaluate(folded, folded_variables, x)
    assert np.abs(got - logits).max() <= 1e-4 * np.abs(logits).max()
    np.testing.assert_allclose(
        got_endpoints['features'], endpoints['features'], rtol=1e-3, atol=1e-4
    )
    assert set(got_endpoints) == set(endpoints)


@pytest.mark.parametrize('name', split([n for n in MODELS if n not in DEEP], FAMILIES))
def test_every_norm_after_a_convolution_is_folded(name):
    model, variables = default_model(name)[0], shapes_of(name)
    if 'batch_stats' not in variables:
        assert fold_batch_norm(model, variables) == (model, variables)
        return
    folded = jax.eval_shape(lambda v: fold_batch_norm(model, v)[1], variables)
    left = set(folded.get('batch_stats', {}))
    if isinstance(
        model, ResNetV2
    ):  # in pre-activation the first norm of a block follows an addition
        assert 'bn1' not in left
        assert all('bn2' not in folded['batch_stats'][block] for block in left - {'bn_last'})
    else:  # auxiliary heads, which only train, are left as they are
        assert all(layer.lower().startswith('aux') for layer in left)


def test_a_model_without_norms_is_returned_as_it_is():
    model = create_model('lenet5', num_classes=10)
    variables = {'params': {'x': np.ones(3)}}
    assert fold_batch_norm(model, variables) == (model, variables)


def test_grey_images_and_bfloat16_fold_too():
    model = create_model('resnet20', num_classes=10, dtype='bfloat16')
    variables = random_variables(model, (32, 32, 1))
    folded, folded_variables = fold_batch_norm(model, variables)
    x = images(32, 4)[..., :1]
    logits, _ = evaluate(model, variables, x)
    got, _ = evaluate(folded, folded_variables, x)
    assert got.dtype == jnp.float32
    assert np.abs(got - logits).max() <= 0.05 * np.abs(logits).max()


def test_a_convolution_that_something_else_reads_too_is_left_alone():
    class Forked(nn.Module):
        num_classes: int = 3

        @nn.compact
        def __call__(self, images, train):
            x = Conv(4, 3, name='forked')(images)
            y = BatchNorm(name='norm')(x, train) + x
            y = BatchNorm(name='norm2')(Conv(3, 1, name='only')(y), train)
            return y.mean((1, 2)), {'features': y.mean((1, 2))}

    model = Forked()
    variables = random_variables(model, (8, 8, 3))
    folded, folded_variables = fold_batch_norm(model, variables, (8, 8, 3))
    assert folded.pairs == ((('norm2',), ('only',)),)
    x = images(8, 2)
    np.testing.assert_allclose(
        evaluate(folded, folded_variables, x)[0], evaluate(model, variables, x)[0], rtol=1e-4
    )


def test_a_folded_model_cannot_be_trained_and_has_the_models_attributes():
    folded = FoldedModel(create_model('resnet20', num_classes=7), ())
    assert folded.num_classes == 7
    with pytest.raises(UserError, match='cannot be trained'):
        folded.apply({}, np.zeros((1, 32, 32, 3), np.float32), train=True)


def test_folded_reads_fewer_variables_and_compiles_to_less():
    model = create_model('resnet20', num_classes=10)
    variables = random_variables(model, (32, 32, 3))
    costs = []
    for m, v in ((model, variables), fold_batch_norm(model, variables)):
        apply = jax.jit(lambda v, x, m=m: m.apply(v, x, train=False)[0])
        program = apply.lower(v, images(32, 4)).compile()
        costs.append((len(jax.tree.leaves(v)), program.cost_analysis()['flops']))
    (plain_leaves, plain_flops), (folded_leaves, folded_flops) = costs
    assert folded_leaves == plain_leaves - 3 * 19  # scale, mean and var of each norm
    assert folded_flops < plain_flops


@pytest.mark.slow
def test_folded_is_no_slower():
    """Measured in turn, so that other load affects both."""
    model = create_model('resnet50', num_classes=10)
    variables = random_variables(model, (224, 224, 3))
    x, calls, compiling = images(224, 2), [], []
    for m, v in ((model, variables), fold_batch_norm(model, variables)):
        start = time.perf_counter()
        program = jax.jit(lambda v, x, m=m: m.apply(v, x, train=False)[0]).lower(v, x).compile()
        compiling.append(time.perf_counter() - start)
        calls.append(partial(program, jax.device_put(v), x))
    times = np.zeros((20, 2))
    for row in times:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call().block_until_ready()
            row[i] = time.perf_counter() - start
    plain, folded = np.median(times[2:], axis=0)
    print(f'as trained {plain:.4f} s, folded {folded:.4f} s; compiling {compiling}')
    assert folded < 1.1 * plain
