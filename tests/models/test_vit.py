"""Vision Transformers answer as torchvision's and timm's, at sizes other than their own too."""

import json
import math
from functools import cache
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from tests.golden.generator import images, sample, state_dict
from tests.models.common import shapes_of
from tests.tiers import quick, split
from vision.core.errors import UserError
from vision.models import create_model
from vision.models.base import abstract_variables
from vision.models.positions import resize_positions, sincos_positions
from vision.models.transformer import ACTIVATIONS, attend, gelu
from vision.models.weights.pretrained import (
    convert,
    guess_name,
    match,
    model_arguments,
    pretrained_input,
)
from vision.models.weights.torch_names import VISION_TRANSFORMERS, normalise_keys, torch_names
from vision.prediction.gradcam import grad_cam

GOLDEN = Path(__file__).parent.parent / 'golden' / 'vit'
TINY = {'patch': 8, 'width': 48, 'depth': 2, 'heads': 3}
VARIANTS = ('vit_s16', 'vit_b16', 'deit3_s16', 'dinov2_s14', 'dinov2_s14_reg', 'clip_b16', 'siglip_b16')  # fmt: skip


@cache
def golden(file, name=''):
    """Returns a golden file's arrays below `name`."""
    with np.load(GOLDEN / f'{file}.npz') as arrays:
        prefix = f'{name}/' if name else ''
        keys = [key for key in arrays.files if key.startswith(prefix)]
        return {key.removeprefix(prefix): arrays[key] for key in keys}


def state_of(name):
    """Returns the state dict of timm or torchvision that a tiny variant's goldens were made with."""
    return state_dict('vit', json.loads(str(golden('small', name)['shapes'])))


def converted(name, state, model, size=(32, 32)):
    """Returns the model's variables for images of `size`, filled from a state dict."""
    shapes = abstract_variables(model, (*size, 3))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    variables, fresh = convert(normalise_keys(state), torch_names(name), zeros, name)
    assert not fresh
    return variables


def assert_close(got, expected, tolerance=1e-4):
    assert np.abs(np.asarray(got) - expected).max() <= tolerance * np.abs(expected).max()


def assert_answers(arrays, apply, variables, sizes, tolerance=1e-4):
    for height, width in sizes:
        x = images(max(height, width), 2)[:, :height, :width]
        logits, endpoints = apply(variables, x)
        assert_close(logits, arrays[f'logits_{height}x{width}'], tolerance)
        assert_close(endpoints['features'], arrays[f'features_{height}x{width}'], tolerance)


@pytest.mark.parametrize('name', split(VARIANTS, ('dinov2_s14', 'siglip_b16')))
def test_answers_as_torchvision_and_timm_at_two_sizes(name):
    arrays = golden('small', name)
    model = create_model(name, num_classes=10, **TINY)
    variables = converted(name, state_of(name), model)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    other = (48, 48) if name == 'vit_b16' else (48, 24)
    # The other size shows that the position embeddings are resized as in the library.
    assert_answers(arrays, apply, variables, [other] if quick() else [(32, 32), other])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vit_s16', 'vit_b16'])
def test_a_published_model_answers_as_it_does_in_torch(name):
    arrays, model = golden(name), create_model(name)
    state = state_dict('vit', json.loads(str(arrays['shapes'])))
    variables = converted(name, state, model, (224, 224))
    assert_answers(arrays, jax.jit(lambda v, x: model.apply(v, x, train=False)), variables,
                   [(224, 224), (160, 160)])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', VARIANTS)
def test_bfloat16_answers_within_its_rounding(name):
    model = create_model(name, num_classes=10, dtype='bfloat16', **TINY)
    variables = converted(name, state_of(name), model)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    assert_answers(golden('small', name), apply, variables, [(32, 32)], tolerance=4e-2)


@pytest.mark.parametrize('name', split(VARIANTS, ('dinov2_s14_reg',)))
def test_weights_made_for_another_size_are_resized_as_the_images_would_be(name):
    model = create_model(name, num_classes=10, **TINY)
    made = converted(name, state_of(name), model)
    loaded = converted(name, state_of(name), model, (48, 64))
    positions = made['params']['pos_embed']
    assert positions.shape == (4, 4, 48)
    expected = resize_positions(np.asarray(positions), (6, 8), model.resize)
    np.testing.assert_allclose(loaded['params']['pos_embed'], expected, atol=1e-6)
    assert np.ptp(expected) > 0.1


@pytest.mark.slow
def test_a_step_of_adamw_is_torchs_with_decay_of_kernels_alone():
    name, arrays = 'dinov2_s14_reg', golden('small', 'adamw')
    model = create_model(name, num_classes=10, **TINY)
    state = normalise_keys(state_of(name))
    before = converted(name, state_of(name), model)['params']
    decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', before)
    optimizer = optax.adamw(0.01, 0.9, 0.999, 0.1, weight_decay=0.5, mask=decayed)

    @jax.jit
    def step(params, x):
        def loss(params):
            logits, _ = model.apply({'params': params}, x, train=True)
            labels = jnp.arange(4)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        gradient, logits = jax.grad(loss, has_aux=True)(params)
        return optimizer.update(gradient, optimizer.init(params), params)[0], logits

    changes, logits = step(before, images(32, 4))
    assert_close(logits, arrays['logits'])
    # Where our values stand in torch's tensors: convert tensors that hold their own indices.
    offsets = np.cumsum([0, *(value.size for value in state.values())])
    indices = {
        key: np.arange(start, start + value.size, dtype=np.float32).reshape(value.shape)
        for (key, value), start in zip(state.items(), offsets, strict=False)
    }
    places = convert(indices, torch_names(name), {'params': before}, name)[0]['params']
    flat = np.full(offsets[-1], np.nan, np.float32)
    for place, change in zip(jax.tree.leaves(places), jax.tree.leaves(changes), strict=True):
        flat[np.asarray(place, int)] = change
    position = 0
    by_key = dict(zip(state, np.split(flat, offsets[1:-1]), strict=True))
    for key, norm in zip(state_of(name), arrays['norms'], strict=True):
        got = sample(by_key[key])
        expected = arrays['changes'][position : position + got.size]
        position += got.size
        scale = max(np.abs(expected).max(), norm / np.sqrt(by_key[key].size))
        assert np.abs(got - expected).max() <= 1e-4 * scale, key
    assert position == arrays['changes'].size


@pytest.mark.parametrize('name', split(VISION_TRANSFORMERS, ()))
def test_the_tensors_of_the_published_model_fill_ours(name):
    shapes = json.loads(str(golden('shapes')[name]))
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    found = match(normalise_keys(state), torch_names(name), shapes_of(name))
    assert not found.problems and not found.fresh


@pytest.mark.parametrize('registers', [False, True])
def test_dinov2s_own_files_are_read(registers):
    """Keys of `dinov2_vits14_pretrain.pth`: no head, a position for the class token, chunks."""
    name = 'dinov2_s14_reg' if registers else 'dinov2_s14'
    model = create_model(name, num_classes=10, **TINY)
    of_timm = state_of(name)
    authors = {key.replace('blocks.', 'blocks.0.'): v for key, v in of_timm.items()}
    authors = {key: v for key, v in authors.items() if not key.startswith('head')}
    authors['mask_token'] = np.ones((1, 48), np.float32)
    if registers:
        first = np.linspace(-1, 1, 48, dtype=np.float32)[None, None]
        authors['register_tokens'] = authors.pop('reg_token')
        authors['cls_token'] = authors['cls_token'] - first
        authors['pos_embed'] = np.concatenate([first, authors['pos_embed']], axis=1)
    expected = converted(name, of_timm, model)
    shapes = abstract_variables(model, (32, 32, 3))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    loaded, fresh = convert(normalise_keys(authors), torch_names(name), zeros, name)
    assert fresh == ['head']
    del expected['params']['head'], loaded['params']['head']
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loaded, expected)


@pytest.mark.slow
def test_deit3s_own_files_are_read():
    """Keys of `deit_3_small_224_1k.pth`: the factors of LayerScale belong to the block."""
    model = create_model('deit3_s16', num_classes=10, **TINY)
    of_timm = state_of('deit3_s16')
    authors = {key.replace('ls1.gamma', 'gamma_1').replace('ls2.gamma', 'gamma_2'): value
               for key, value in of_timm.items()}  # fmt: skip
    assert {'blocks.0.gamma_1', 'blocks.1.gamma_2', 'cls_token', 'pos_embed'} < set(authors)
    expected, loaded = (converted('deit3_s16', state, model) for state in (of_timm, authors))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


@pytest.mark.parametrize(
    'source, name',
    [
        ('hf:timm/vit_small_patch16_224.augreg_in1k', 'vit_s16'),
        ('vit_b_16-c867db91.pth', 'vit_b16'),
        ('hf:timm/vit_large_patch16_384.augreg_in21k_ft_in1k', 'vit_l16'),
        ('hf:timm/deit3_base_patch16_384.fb_in22k_ft_in1k', 'deit3_b16'),
        ('w/deit_3_small_224_1k.pth', 'deit3_s16'),
        ('deit_3_base_384_21k.pth', 'deit3_b16'),
        ('dinov2_vits14_pretrain.pth', 'dinov2_s14'),
        ('dinov2_vitl14_reg4_pretrain.pth', 'dinov2_l14_reg'),
        ('hf:timm/vit_base_patch14_reg4_dinov2.lvd142m', 'dinov2_b14_reg'),
        ('hf:timm/vit_base_patch32_clip_224.openai', 'clip_b32'),
        ('hf:timm/vit_base_patch16_siglip_224.webli', 'siglip_b16'),
    ],
)
def test_the_model_is_guessed_from_the_sources_name(source, name):
    assert guess_name(source) == name


def test_timms_weights_come_with_timms_arguments():
    source = 'hf:timm/vit_base_patch16_clip_224.'
    assert model_arguments('clip_b16', f'{source}openai') == {'activation': 'quick_gelu'}
    assert model_arguments('clip_b16', f'{source}laion2b') == {'activation': 'gelu'}
    timm = 'hf:timm/vit_small_patch14_dinov2.lvd142m'
    assert model_arguments('dinov2_s14', timm) == {'resize': 'timm'}
    assert model_arguments('dinov2_s14', 'dinov2_vits14_pretrain.pth') == {}
    # Files of timm are known by their names.
    assert model_arguments('vit_b16', 'w/vit_base_patch16_224.augreg_in1k.safetensors') == {
        'resize': 'timm'
    }
    assert model_arguments('vit_b16', 'w/vit_b_16-c867db91.pth') == {}
    assert pretrained_input('vit_s16', 'w/deit_small_patch16_224-cd65a155.pth').mean[0] == 0.485
    assert pretrained_input('vit_b16', 'vit_base_patch16_224.augreg_in1k.pth').mean[0] == 0.5
    assert pretrained_input('vit_b16', 'vit_b_16-c867db91.pth').mean[0] == 0.485


def test_the_gelu_of_bfloat16_is_that_of_float32():
    x = jnp.linspace(-4, 4, 257).astype(jnp.bfloat16)
    exact = nn.gelu(x.astype(jnp.float32), approximate=False)
    np.testing.assert_allclose(gelu(x).astype(np.float32), exact, rtol=2**-8, atol=1e-30)


def test_all_blocks_of_deit3_are_dropped_alike():
    x, (linear, uniform) = (
        images(16, 4),
        (
            create_model('vit_s16', drop_path=0.999, uniform_drop_path=u, **TINY | {'depth': 1})
            for u in (False, True)
        ),
    )
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(0)}

    @jax.jit
    def run():
        variables = linear.init(rngs, x, train=True)
        return [
            m.apply(variables, x, train=True, rngs=rngs)[1]['block0'] for m in (linear, uniform)
        ]

    kept, dropped = run()
    assert np.abs(kept - dropped).max() > 1e-3


@pytest.mark.parametrize('form', ['timm', 'torchvision', 'dinov2'])
@pytest.mark.parametrize('size', [(3, 7), (9, 4), (1, 1)])
def test_resizing_positions_keeps_constants(form, size):
    constant = np.full((5, 5, 2), 3, np.float32)
    resized = resize_positions(constant, size, form)
    np.testing.assert_allclose(resized, np.full((*size, 2), 3), rtol=1e-5)
    assert resize_positions(constant, (5, 5), form) is constant


def test_activations_are_their_formulas():
    x = np.linspace(-6, 6, 41)
    got = jax.jit(lambda x: {name: f(x) for name, f in ACTIVATIONS.items()})(np.float32(x))
    expected = {
        'gelu': x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
        'gelu_tanh': x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        'quick_gelu': x / (1 + np.exp(-1.702 * x)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=2e-6)


def test_attention_is_a_softmax_over_the_keys():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 3, 4)).astype(np.float32) for n in (5, 7, 7))
    weights = np.exp(np.einsum('bnhd,bmhd->bhnm', q, k) / 2)
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum('bhnm,bmhd->bnhd', weights, v)
    np.testing.assert_allclose(jax.jit(attend)(q, k, v), expected, atol=1e-5)


@pytest.mark.parametrize('name', ['dinov2_s14_reg', 'siglip_b16'])
def test_kernels_and_nothing_else_are_decayed_by_name(name):
    """Not biases, norms, position embeddings, tokens and LayerScale: `weight_decay_pattern`."""
    shapes = abstract_variables(create_model(name, **TINY), (32, 32, 3))['params']
    leaves = {path[-1] for path in flatten_dict(shapes)}
    others = {'bias', 'scale', 'pos_embed'}
    if name == 'siglip_b16':
        others |= {'latent'}
    else:
        others |= {'cls_token', 'reg_token', 'gamma'}
    assert leaves == {'kernel', *others}
    assert all(v.ndim > 1 for path, v in flatten_dict(shapes).items() if path[-1] == 'kernel')


@pytest.mark.parametrize(
    'arguments, size, says',
    [
        ({}, (32, 36), 'multiples of patch=8, not 32x36'),
        ({'heads': 5}, (32, 32), 'heads=5 does not divide width=48'),
        ({'depth': 0}, (32, 32), 'depth=0 must be 1 or more'),
    ],
)
def test_what_does_not_divide_is_one_line(arguments, size, says):
    model = create_model('vit_s16', **{**TINY, **arguments})
    with pytest.raises(UserError, match=says):
        abstract_variables(model, (*size, 3))


def test_variables_in_numpy_are_not_written_to():
    """As in an export, where they are constants of the program."""
    model = create_model('vit_s16', num_classes=10, **TINY)
    variables = converted('vit_s16', state_of('vit_s16'), model)
    variables = jax.tree.map(lambda v: np.array(v), variables)
    for leaf in jax.tree.leaves(variables):
        leaf.flags.writeable = False
    jax.eval_shape(lambda x: model.apply(variables, x, train=False), images(32, 2))


@pytest.mark.parametrize('size', [28, 32])
def test_patches_of_4_take_small_grey_images(size):
    model = create_model('vit_ti16', num_classes=10, patch=4, depth=1, resolution=size)
    assert model.input_shape == (size, size, 3)
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    (logits, endpoints), _ = jax.eval_shape(
        lambda: model.init_with_output(rngs, jnp.zeros((2, size, size, 1)), train=True)
    )
    assert logits.shape == (2, 10)
    assert endpoints['block0'].shape == (2, size // 4, size // 4, 192)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['dinov2_s14_reg', 'siglip_b16'])
def test_grad_cam_explains_a_map_that_the_logits_depend_on(name):
    model = create_model(name, num_classes=10, **TINY)
    variables = converted(name, state_of(name), model)
    classes = jnp.asarray([[0, 1], [0, 1]])
    maps, _ = jax.jit(lambda v, x: grad_cam(model, v, x, classes))(variables, images(32, 2))
    assert maps.shape == (2, 2, 4, 4)
    assert maps.max() > 0


@pytest.mark.slow
def test_drop_path_leaves_out_branches_of_whole_images():
    model = create_model('vit_s16', num_classes=3, drop_path=0.999, **TINY)
    x = images(32, 8)

    @jax.jit
    def run(key):
        variables = model.init({'params': key, 'dropout': key}, x, train=True)
        rngs = {'dropout': key}
        return [model.apply(variables, x, train=t, rngs=rngs)[1] for t in (True, False)]

    trained, evaluated = run(jax.random.key(0))
    # The rate grows from 0 at the first block to 0.999 at the last.
    np.testing.assert_allclose(trained['block0'], evaluated['block0'], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(trained['block1'], trained['block0'], rtol=1e-5, atol=1e-5)


def test_the_mean_of_patches_at_fixed_positions():
    """Beyer et al. 2022: no class token, and sines and cosines that are not parameters."""
    model = create_model(
        'vit_ti16', width=8, depth=1, heads=2, patch=4, pool='mean', positions='sincos2d'
    )
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    run = jax.jit(lambda key: model.init_with_output(key, images, train=False))
    (_, endpoints), variables = run(jax.random.key(1))
    assert set(variables['params']) == {'patch_embed', 'blocks_0', 'norm', 'head'}
    np.testing.assert_allclose(
        endpoints['features'], endpoints['tokens'].mean((1, 2)), rtol=1e-5, atol=1e-6
    )
    made = sincos_positions(2, 3, 8)
    for y, x in np.ndindex(2, 3):
        expected = [f(at * rate) for at in (x, y) for f in (np.sin, np.cos) for rate in (1, 1e-4)]
        np.testing.assert_allclose(made[y, x], expected, rtol=1e-6)
    with pytest.raises(UserError, match='needs a width of 8, 12, 16, …, not 6'):
        create_model('vit_ti16', width=6, heads=2, positions='sincos2d').init(
            jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False
        )
