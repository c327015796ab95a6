"""Logits and a training step equal those of torch's models for the same weights."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from tests.golden import generator
from tests.processes import FULL_EFFORT
from tests.tiers import quick, split
from vision.models import create_model
from vision.models.base import abstract_variables
from vision.models.summary import default_model
from vision.models.weights.pretrained import convert
from vision.models.weights.torch_names import (
    TORCH_MODELS,
    VISION_TRANSFORMERS,
    normalise_keys,
    torch_names,
)

GOLDEN = Path(__file__).parent.parent / 'golden'
NAMES = sorted(path.stem for path in GOLDEN.glob('*.npz'))
# Quick tests compare one network of each family at one size; the rest is slow.
QUICK = ('alexnet', 'vgg11_bn', 'googlenet', 'resnet50', 'efficientnet_lite0')
TRAINED = ('alexnet', 'vgg11_bn', 'googlenet', 'inception_v3', 'resnet18', 'efficientnet_b0', 'efficientnet_lite0')  # fmt: skip
TRAINED_QUICK = ('resnet18',)


@cache
def _golden(name):
    with np.load(GOLDEN / f'{name}.npz') as file:
        return dict(file)


def _shapes(name, train=False):
    """Returns the tensors' shapes by the names of the library that the goldens were made with."""
    golden = _golden(name)
    return json.loads(
        str(golden['train_shapes' if train and 'train_shapes' in golden else 'shapes'])
    )


def _pretrained(name, train=False):
    """Returns the model's variables, converted from the state dict that the goldens were made with."""
    state = normalise_keys(generator.state_dict(name, _shapes(name, train)))
    model, shape = default_model(name)
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), abstract_variables(model, shape))
    converted, fresh = convert(state, torch_names(name), variables, name)
    assert not fresh
    return converted


def test_there_is_a_golden_for_each_model_that_torchvision_or_timm_has():
    # ConvNeXts of other scales have the same blocks and other numbers of them.
    scaled = {f'convnext_{size}' for size in ('small', 'base', 'large')}
    others = scaled.union(VISION_TRANSFORMERS)  # see test_vit.py
    assert set(TORCH_MODELS) - others <= set(NAMES) <= set(TORCH_MODELS)


@pytest.mark.parametrize('name', split(NAMES, QUICK))
def test_evaluates_as_torchvision_at_two_sizes(name):
    golden = _golden(name)
    sizes = [int(key.removeprefix('logits_')) for key in golden if key.startswith('logits_')]
    assert len(sizes) == 2
    assert any(size % 2 for size in sizes)
    variables = _pretrained(name)
    model = create_model(name)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False)[0])
    # Compiling a program for each size takes most of the time.
    for size in [size for size in sizes if size % 2][:1] if quick() else sizes:
        logits = np.asarray(apply(variables, generator.images(size, 2)))
        expected = golden[f'logits_{size}']
        # Relative to the largest logit: the relative error of a logit near zero means nothing.
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize('name', split(TRAINED, TRAINED_QUICK))
def test_trains_a_step_as_torchvision(name):
    golden = _golden(name)
    variables = _pretrained(name, train=True)
    model = create_model(name, **_no_dropout(name))
    images = generator.images(int(golden['train_size']), len(generator.LABELS))
    # With the tests' low compiler effort other ReLUs switch: one tensor of Inception is .6 % off.
    options = FULL_EFFORT if name == 'inception_v3' else None
    step = _loss_and_gradients(model, variables, images, options)
    (loss, (logits, endpoints, stats)), grads = step
    assert np.isfinite(loss)
    _assert_close(logits, golden['train_logits'], 1e-4)
    for i, aux in enumerate(endpoints.get('aux', ())):
        _assert_close(aux, golden[f'train_aux_{i}'], 1e-4)
    params, before = variables['params'], variables
    params = jax.tree.map(lambda p, g: p - generator.LEARNING_RATE * g, params, grads)
    after = {'params': params, 'batch_stats': stats}
    _compare_changes(name, golden, before, after)


def _no_dropout(name):
    if name.startswith('efficientnet'):
        return {'dropout': 0.0, 'drop_path': 0.0, 'bn_momentum': 0.9}  # torch's
    none = {'dropout': 0.0} if name not in ('resnet18',) else {}
    return none | ({'aux_dropout': 0.0} if name == 'googlenet' else {})


def _loss_and_gradients(model, variables, images, options):
    @partial(jax.jit, compiler_options=options)
    def run(params, stats, images):
        def loss_of(params):
            (logits, endpoints), state = model.apply(
                {'params': params, 'batch_stats': stats},
                images,
                train=True,
                mutable=['batch_stats'],
            )
            loss = _cross_entropy(logits)
            for aux in endpoints.get('aux', ()):
                loss += generator.AUX_WEIGHT * _cross_entropy(aux)
            return loss, (logits, endpoints, state.get('batch_stats', {}))

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    return run(variables['params'], variables.get('batch_stats', {}), images)


def _cross_entropy(logits):
    labels = jnp.asarray(generator.LABELS)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _compare_changes(name, golden, before, after):
    """Compares sampled changes of every tensor with torch's, relative to the tensor's norm."""
    names = torch_names(name)
    shapes = normalise_keys(_shapes(name, train=True))
    ours = {}
    for path, value in flatten_dict(after).items():
        change = np.asarray(value) - np.asarray(flatten_dict(before)[path])
        ours[names.key(path)] = _torch_layout(change, path, names)
    position, errors = 0, {}
    keys = [key for key in shapes if not key.endswith('num_batches_tracked')]
    assert set(keys) == set(ours)
    for key, norm in zip(keys, golden['norms'], strict=True):
        got = generator.sample(ours[key])
        expected = golden['changes'][position : position + got.size]
        position += got.size
        errors[key] = _relative_error(got, expected, ours[key], norm)
    assert position == golden['changes'].size
    statistics = [e for key, e in errors.items() if 'running' in key]
    assert max(statistics, default=0) <= 1e-4
    # Rounding can switch a ReLU or move a maximum. The Inception family has so many of them that
    # single values differ by per cents between float32 and float64. So do most of EfficientNet-Lite0's
    # (timm's own step in float32 differs from that in float64 by 8 % in the median tensor).
    # EfficientNet-B0 has three times ResNet-18's layers.
    largest, typical = {
        'googlenet': (4e-2, 1e-2),
        'inception_v3': (4e-2, 1e-2),
        'efficientnet_lite0': (8e-2, 4e-2),
        'efficientnet_b0': (1e-4, 2e-5),
    }.get(name, (1e-4, 1e-5))
    assert max(errors.values()) <= largest, errors
    assert np.median(list(errors.values())) <= typical


def _relative_error(got, expected, ours, norm):
    """Returns the largest error of the sampled values, relative to the tensor's own size."""
    flat = ours.reshape(-1)
    ours_norm = np.sqrt(np.einsum('i,i->', flat, flat, dtype=np.float64))
    if norm < 1e-12:  # a bias before a BatchNorm changes nothing and should not change
        return 0.0 if ours_norm < 1e-4 else np.inf
    # The change of a parameter is only as exact as float32 represents the parameter.
    np.testing.assert_allclose(ours_norm, norm, rtol=5e-3)
    return np.abs(got - expected).max() / max(np.abs(expected).max(), norm / np.sqrt(ours.size))


def _torch_layout(array, path, names):
    if path[-1] != 'kernel':
        return array
    if array.ndim == 2:
        window = names.windows.get(path[1:-1], 1)
        array = array.reshape(window, window, -1, array.shape[-1])
        return array.transpose(3, 2, 0, 1).reshape(array.shape[-1], -1)
    return array.transpose(3, 2, 0, 1)


def _assert_close(got, expected, tolerance):
    assert np.abs(np.asarray(got) - expected).max() <= tolerance * np.abs(expected).max()
