"""Narrow networks equal torch's for the same weights: logits, features and a step of AdamW."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from tests.golden import generator
from tests.models.test_parity import GOLDEN, _relative_error, _torch_layout
from tests.tiers import quick, split
from vision.core.errors import UserError
from vision.models import create_model
from vision.models.base import abstract_variables
from vision.models.layers import xla_only
from vision.models.weights.pretrained import convert, guess_name, load_pretrained
from vision.models.weights.torch_names import TorchNames, normalise_keys, torch_names
from vision.training.optimizer import matches

_CONVNEXT = {'stage_sizes': (1, 1, 2, 1), 'widths': (8, 16, 24, 32), 'drop_path': 0.0}
# Registry name and arguments of the networks that tests/golden/make_narrow.py builds in torch.
NETWORKS = {
    'convnext_torchvision': ('convnext_tiny', _CONVNEXT),
    'convnext_timm': ('convnext_tiny', _CONVNEXT),
    'resnet_sed': (
        'resnet50d',
        {'stage_sizes': (1, 1, 2, 1), 'widths': (32, 64, 32, 32), 'squeeze_excite': True},
    ),
    'resnet_sscd': (
        'sscd_resnet50',
        {'stage_sizes': (1,) * 4, 'widths': (64, 16, 16, 16), 'embedding': 24},
    ),
    'resnet_wide': (
        'wide_resnet40_4',
        {'stage_sizes': (1,) * 3, 'widths': (32, 64, 128), 'num_classes': 10},
    ),
}
TRAINED = ('convnext_torchvision', 'convnext_timm', 'resnet_sed')
ADAMW = {'learning_rate': 0.1, 'eps': 1e-2, 'weight_decay': 0.5}


@cache
def golden_of(name):
    with np.load(GOLDEN / 'narrow' / f'{name}.npz') as file:
        return dict(file)


def names_of(name):
    if name == 'resnet_wide':  # our stem has the first block's norm
        return TorchNames(
            lambda path: '.'.join(path).replace('_0', '.0') if path != ('bn1',) else 'layer1.0.bn1'
        )
    return torch_names(NETWORKS[name][0])


@cache
def network(name):
    """Returns the model, and its variables read from the torch network's."""
    registry_name, arguments = NETWORKS[name]
    model = create_model(registry_name, **arguments)
    shapes = json.loads(str(golden_of(name)['shapes']))
    state = normalise_keys(generator.state_dict(name, shapes))
    zeros = jax.tree.map(
        lambda s: np.zeros(s.shape, s.dtype), abstract_variables(model, (64, 64, 3))
    )
    variables, fresh = convert(state, names_of(name), zeros, name)
    assert fresh == (['fc'] if name == 'resnet_sscd' else [])
    return model, {'batch_stats': {}, **variables}


def assert_close(got, expected, tolerance):
    assert (
        np.abs(np.asarray(got, np.float32) - expected).max() <= tolerance * np.abs(expected).max()
    )


@pytest.mark.parametrize('name', split(NETWORKS, ('resnet_sed',)))
def test_evaluates_as_torch_at_two_sizes_and_in_bfloat16(name):
    model, variables = network(name)
    golden = golden_of(name)

    @partial(jax.jit, static_argnums=2)
    def run(variables, images, dtype):
        logits, endpoints = model.clone(dtype=dtype).apply(variables, images, train=False)
        return {'logits': logits, 'features': endpoints['features']}

    cases = [(64, 'float32', 1e-4), (45, 'float32', 1e-4), (45, 'bfloat16', 0.05)]
    for size, dtype, tolerance in cases[1:2] if quick() else cases:
        found = run(variables, generator.images(size, 2), jnp.dtype(dtype))
        for kind, values in found.items():
            if f'{kind}_{size}' in golden:
                assert_close(values, golden[f'{kind}_{size}'], tolerance)


@pytest.mark.parametrize('name', split(TRAINED, ('convnext_timm',)))
def test_a_step_of_adamw_is_torchs_and_the_kernels_are_what_decays(name):
    """Weight decay of `kernel$` is that of timm and of the authors: no norm, bias or scale."""
    model, variables = network(name)
    golden = golden_of(name)
    optimizer = optax.adamw(**ADAMW, mask=partial(matches, 'kernel$'))

    @jax.jit
    def step(variables, images):
        def loss_of(params):
            (logits, _), updated = model.apply(
                {**variables, 'params': params}, images, train=True, mutable=['batch_stats']
            )
            labels = jnp.asarray(generator.LABELS)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, (logits, updated.get('batch_stats', {}))

        params = variables['params']
        gradient, (logits, stats) = jax.grad(loss_of, has_aux=True)(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return logits, {'params': optax.apply_updates(params, updates), 'batch_stats': stats}

    with xla_only():  # fast forms have tests of their own and take longer to compile
        logits, after = step(variables, generator.images(64, len(generator.LABELS)))
    assert_close(logits, golden['train_logits'], 1e-4)
    # Changes of every tensor by torch's name, in torch's order and layout.
    names, before, ours = names_of(name), flatten_dict(variables), {}
    for path, value in flatten_dict(after).items():
        change = np.asarray(value) - np.asarray(before[path])
        ours[names.key(path)] = _torch_layout(change, path, names)
    shapes = normalise_keys(json.loads(str(golden['shapes'])))
    keys = [key for key in shapes if not key.endswith('num_batches_tracked')]
    assert set(keys) == set(ours)
    position = 0
    for key, norm in zip(keys, golden['norms'], strict=True):
        got = generator.sample(ours[key])
        expected = golden['changes'][position : position + got.size]
        position += got.size
        assert _relative_error(got, expected, ours[key], norm) <= 1e-3, key


def test_the_authors_names_of_convnext_are_timms():
    shapes = json.loads(str(golden_of('convnext_timm')['shapes']))
    of_authors = {}
    for key in shapes:
        name = key.replace('stem.', 'downsample_layers.0.').replace('.blocks.', '.')
        name = name.replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv')
        name = name.replace('head.fc', 'head').replace('head.norm', 'norm')
        if '.downsample.' in name:
            name = name.replace('stages.', 'downsample_layers.').replace('.downsample.', '.')
        of_authors[name] = shapes[key]
    assert {
        'downsample_layers.1.0.weight',
        'stages.2.1.pwconv2.bias',
        'norm.bias',
        'head.bias',
    } < set(of_authors)
    assert normalise_keys(of_authors) == normalise_keys(shapes)


def test_sscd_files_of_both_backbones_are_read():
    shapes = json.loads(str(golden_of('resnet_sscd')['shapes']))
    expected = normalise_keys(shapes)
    own = {key.replace('backbone.fc.', 'embeddings.1.'): shape for key, shape in shapes.items()}
    assert 'backbone.conv1.weight' in own and 'embeddings.1.bias' in own
    assert normalise_keys(own) == expected


def test_sscd_has_no_classifier(tmp_path):
    """Its weights embed and can be fine-tuned, but they cannot predict."""
    shapes = json.loads(str(golden_of('resnet_sscd')['shapes']))
    path = str(tmp_path / 'sscd_disc_mixup.safetensors')
    save_file(generator.state_dict('resnet_sscd', shapes), path)
    _, expected = network('resnet_sscd')
    fresh = jax.tree.map(lambda x: np.full(x.shape, -7, x.dtype), expected)
    loaded = load_pretrained(path, guess_name(path), fresh)
    assert (loaded['params'].pop('fc')['kernel'] == -7).all()
    kept = {kind: {k: v for k, v in tree.items() if k != 'fc'} for kind, tree in expected.items()}
    jax.tree.map(np.testing.assert_array_equal, loaded, kept)
    with pytest.raises(UserError, match=r'has no classifier, or .*search with it'):
        load_pretrained(path, 'sscd_resnet50', fresh, new_head=False)
