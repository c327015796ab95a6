"""Layer-wise learning rate decay: how models are divided into layers, and the factors."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.tiers import split
from tests.training import tiny
from tests.training.tiny import tiny_config
from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.models import create_model
from vision.models.base import init_variables
from vision.training.layer_decay import layer_factors, model_layers
from vision.training.optimizer import RateFactors
from vision.training.setup import setup
from vision.training.step import init_state, make_train_step

# A model, and its layers from the input to the output.
LAYERS = [
    (
        ('resnet18', {'stage_sizes': (1, 2, 1, 1)}),
        [['conv1', 'bn1'], ['layer1_0'], ['layer2_0'], ['layer2_1'], ['layer3_0'], ['layer4_0'], ['fc']],
    ),
    (('lenet5', {}), [['conv1'], ['conv2'], ['fc1'], ['fc2'], ['fc3']]),
    (
        ('vgg11_bn', {}),
        [
            *([f'conv{n}', f'bn{n}'] for n in ('1_1', '2_1', '3_1', '3_2', '4_1', '4_2', '5_1', '5_2')),
            ['fc6'], ['fc7'], ['fc8'],
        ],
    ),
    (
        ('efficientnet_b0', {}),
        [['stem_conv', 'stem_bn'], *([f'block{i}'] for i in range(16)), ['top_conv', 'top_bn', 'classifier']],
    ),
    (
        ('convnext_tiny', {'stage_sizes': (1, 2, 1, 1)}),
        [
            ['stem_conv', 'stem_norm'],
            ['stage1_0'],
            ['downsample2_norm', 'downsample2_conv', 'stage2_0'],
            ['stage2_1'],
            ['downsample3_norm', 'downsample3_conv', 'stage3_0'],
            ['downsample4_norm', 'downsample4_conv', 'stage4_0'],
            ['norm', 'head'],
        ],
    ),
    (
        ('vit_ti16', {'depth': 3}),
        [
            ['patch_embed', 'pos_embed', 'cls_token', 'cls_position'],
            ['blocks_0'], ['blocks_1'], ['blocks_2'], ['norm', 'head'],
        ],
    ),
    (
        ('siglip_b16', {'depth': 1}),
        [['patch_embed', 'pos_embed'], ['blocks_0'], ['norm', 'attn_pool', 'head']],
    ),
]  # fmt: skip


@pytest.mark.parametrize(('model', 'layers'), split(LAYERS, [LAYERS[0], LAYERS[-2]]))
def test_the_layers_of_a_family(model, layers):
    name, arguments = model
    model = create_model(name, num_classes=10, **arguments)
    assert model_layers(model, model.input_shape) == layers
    # Every parameter has a factor; each layer's is the next one's times the decay.
    factors = dict(layer_factors(model, model.input_shape, 0.5))
    for n, names in enumerate(reversed(layers)):
        assert {factors.pop(name) for name in names} == {0.5**n}
    assert not factors


@pytest.mark.slow
def test_auxiliary_heads_belong_to_the_last_layer():
    model = create_model('googlenet', num_classes=10)
    *_, block, last = model_layers(model, model.input_shape)
    assert (block, last) == (['inception5b'], ['fc', 'aux1', 'aux2'])


class Trunk(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(nn.Dense(3)(images))


class Whole(nn.Module):
    """A model of a user's own, with one module at its top level besides the classifier."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train):
        features = Trunk(name='trunk')(images).mean((1, 2))
        return nn.Dense(self.num_classes, name='head')(features), {'features': features}


def test_a_model_without_layers_is_refused():
    with pytest.raises(UserError, match='the order of the layers of an NNX module is unknown'):
        layer_factors(create_model('tests.models.test_nnx:Net'), (28, 28, 1), 0.75)
    with pytest.raises(
        UserError, match=r'Whole has only 2 layers at its top level \(trunk, head\)'
    ):
        layer_factors(Whole(), (8, 8, 1), 0.75)


def test_the_factors_multiply_those_of_lr_factors_and_frozen_layers_stay():
    model = tiny.Net(num_classes=10)  # conv and bn, hidden, head
    layers = layer_factors(model, (32, 32, 1), 0.5)
    params = jax.eval_shape(lambda: init_variables(model, (32, 32, 1), jax.random.key(0)))['params']
    of = RateFactors('^hidden', (('bias$', 3.0),), layers).of(params)
    assert of == {
        'conv': {'kernel': 0.25, 'bias': 0.75},
        'bn': {'scale': 0.25, 'bias': 0.75},
        'hidden': {'kernel': 0.0, 'bias': 0.0},
        'head': {'kernel': 1.0, 'bias': 3.0},
    }


@pytest.mark.slow
def test_a_step_is_the_factor_times_the_step_without_decay():
    moved = {}
    for decay in (None, 0.5):
        config = tiny_config(schedule__name='constant', schedule__warmup='0 steps')
        config.layer_decay = decay
        run = setup(config)
        state = init_state(run.recipe, run.input_shape, make_mesh())
        before = jax.device_get(state.params)
        rng = np.random.default_rng(0)
        batch = {
            'image': rng.uniform(0, 255, (32, 32, 32, 1)).astype(np.float32),
            'label': np.arange(32, dtype=np.int32) % 10,
            'id': np.arange(32, dtype=np.int32),
            'mask': np.ones(32, np.float32),
        }
        state, _ = make_train_step(run.recipe, run.mesh)(state, batch)
        moved[decay] = jax.tree.map(np.subtract, jax.device_get(state.params), before)
    for name, factor in (('conv', 0.25), ('bn', 0.25), ('hidden', 0.5), ('head', 1.0)):
        for ours, plain in zip(
            jax.tree.leaves(moved[0.5][name]), jax.tree.leaves(moved[None][name]), strict=True
        ):
            np.testing.assert_allclose(ours, factor * plain, rtol=1e-3, atol=1e-6)
            assert np.abs(plain).max() > 0
