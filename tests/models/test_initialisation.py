"""Initialisation of each family, from its paper or its authors' code."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.tiers import split
from vision.models import convnext, create_model, efficientnet, googlenet, inception


def start(module, size, channels=3):
    """Returns a module's initial parameters by 'layer/name', norms and biases included."""
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    x = np.zeros((2, size, size, channels), np.float32)
    variables = jax.jit(lambda x: module.init(rngs, x, True))(x)
    return {'/'.join(path): np.asarray(v) for path, v in flatten_dict(variables['params']).items()}


def fan_in(kernel):
    return np.prod(kernel.shape[:-1])


def test_alexnet_is_normal_with_ones_in_the_biases_that_section_5_names():
    params = start(create_model('alexnet_2012', num_classes=500, stem='small', hidden=256), 32)
    for layer in ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'fc6', 'fc7', 'fc8'):
        ones = layer in ('conv2', 'conv4', 'conv5', 'fc6', 'fc7')
        assert (params[f'{layer}/bias'] == ones).all(), layer
        assert params[f'{layer}/kernel'].std() == pytest.approx(0.01, rel=0.03), layer


def test_vgg_of_the_paper_is_glorots():
    params = start(create_model('vgg_a', num_classes=10, stem='small'), 8)
    for name, kernel in params.items():
        if name.endswith('kernel') and name.startswith('conv'):
            fans = np.prod(kernel.shape[:2]) * sum(kernel.shape[2:])
            assert np.abs(kernel).max() <= np.sqrt(6 / fans)
            assert kernel.std() == pytest.approx(np.sqrt(2 / fans), rel=0.03)
        elif name.endswith('bias'):
            assert (kernel == 0).all()


@pytest.mark.parametrize(
    'name, zero', split([('resnet50', True), ('resnet50_v1', False)], [('resnet50', True)])
)
def test_resnet_is_hes_and_todays_starts_its_blocks_as_identity(name, zero):
    params = start(create_model(name, num_classes=10, stage_sizes=(1, 1), stem='small'), 8)
    for layer in ('layer1_0', 'layer2_0'):
        assert (params[f'{layer}/bn3/scale'] == (0 if zero else 1)).all()
        assert (params[f'{layer}/bn2/scale'] == 1).all()
        kernel = params[f'{layer}/conv2/kernel']
        fan_out = 9 * kernel.shape[-1]
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_out), rel=0.03)


@pytest.mark.parametrize('name', split(['resnet20', 'resnet110_v2'], ['resnet20']))
def test_cifar_resnets_are_hes_over_the_inputs(name):
    params = start(create_model(name, num_classes=10, stage_sizes=(1, 1, 1)), 8)
    kernel = params['layer3_0/conv1/kernel']
    assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in(kernel)), rel=0.03)


def test_efficientnet_is_its_authors():
    params = start(efficientnet.MBConv(32, 5), 4, 64)
    kernel = params['depthwise_conv/kernel']
    assert kernel.shape == (5, 5, 1, 384)
    assert kernel.std() == pytest.approx(np.sqrt(2 / 25), rel=0.03)
    kernel = params['expand_conv/kernel']
    assert kernel.std() == pytest.approx(np.sqrt(2 / 384), rel=0.03)


def test_convnext_is_its_authors():
    params = start(convnext.Block(), 2, 96)
    for layer in ('depthwise_conv', 'fc1', 'fc2'):
        assert params[f'{layer}/kernel'].std() == pytest.approx(0.02, rel=0.05), layer
        assert (params[f'{layer}/bias'] == 0).all()
    assert (params['layer_scale/gamma'] == np.float32(1e-6)).all()


def test_googlenet_of_the_paper_is_the_caffe_replicas():
    params = start(googlenet.Inception(googlenet.WIDTHS['3a'], original=True), 4, 192)
    assert all((v == np.float32(0.2)).all() for k, v in params.items() if k.endswith('bias'))
    kernel = params['branch2_1/conv/kernel']
    fans = 9 * sum(kernel.shape[2:])
    assert kernel.std() == pytest.approx(np.sqrt(2 / fans), rel=0.03)


def test_inceptions_auxiliary_head_is_narrower():
    cut = 0.8796  # deviation of a standard normal truncated at ±2
    params = start(inception.AuxiliaryHead(200, 'small'), 17, 256)
    for layer, std in (('conv0/conv', 0.1), ('conv1/conv', 0.01), ('fc', 0.001)):
        kernel = params[f'{layer}/kernel']
        assert kernel.std() == pytest.approx(std * cut, rel=0.03)
        assert np.abs(kernel).max() <= 2 * std


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vit_s16', 'dinov2_s14_reg', 'siglip_b16', 'deit3_s16'])
def test_vit_is_its_authors(name):
    params = start(create_model(name, width=96, depth=1, heads=2, patch=8), 32)
    jax_code = name in ('vit_s16', 'siglip_b16')
    qkv, fc1 = params['blocks_0/attn/qkv/kernel'], params['blocks_0/mlp/fc1/kernel']
    if jax_code:  # Glorot's uniform, for one of queries, keys and values
        assert np.abs(qkv).max() <= np.sqrt(6 / (96 + 96))
        assert qkv.std() == pytest.approx(np.sqrt(1 / 96), rel=0.03)
        assert fc1.std() == pytest.approx(np.sqrt(2 / (96 + 384)), rel=0.03)
        assert (params['head/kernel'] == 0).all()
    else:
        for layer in ('blocks_0/attn/qkv', 'blocks_0/mlp/fc2', 'head'):
            assert params[f'{layer}/kernel'].std() == pytest.approx(0.02, rel=0.03)
        scale = 1e-4 if name == 'deit3_s16' else 1e-5
        assert (params['blocks_0/ls1/gamma'] == np.float32(scale)).all()
    # The authors of DeiT III draw the class token like the positions, those of DINOv2 near 0.
    if name == 'deit3_s16':
        assert params['cls_token'].std() == pytest.approx(0.02, rel=0.25)
    elif name == 'dinov2_s14_reg':
        assert 0 < np.abs(params['reg_token']).max() < 1e-5
        assert 0 < np.abs(params['cls_token']).max() < 1e-5
    assert params['pos_embed'].std() == pytest.approx(0.02, rel=0.05)
    assert np.abs(params['blocks_0/mlp/fc1/bias']).max() < 1e-5
