"""Frozen parameters, running statistics and their averages do not change by a bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.tiers import split
from tests.training.tiny import tiny_config
from vision.models import create_model
from vision.models.base import abstract_variables
from vision.training.optimizer import RateFactors
from vision.training.setup import setup
from vision.training.step import init_state, make_train_step


def moved_by(config, steps=2):
    """Returns the paths of params, batch_stats and averages that changed in some steps."""
    run = setup(config)
    state = init_state(run.recipe, run.input_shape, run.mesh)
    before = {kind: jax.tree.map(np.array, getattr(state, kind)) for kind in KINDS}
    step, rng = make_train_step(run.recipe, run.mesh), np.random.default_rng(0)
    for _ in range(steps):
        batch = {
            'image': jnp.asarray(rng.integers(0, 256, (8, *run.input_shape)), jnp.uint8),
            'label': jnp.arange(8) % 10,
            'id': jnp.arange(8),
            'mask': jnp.ones(8),
        }
        state, _ = step(state, batch)
    return {
        kind: {
            '/'.join(path)
            for path, value in flatten_dict(jax.device_get(getattr(state, kind))).items()
            if value.tobytes() != flatten_dict(before[kind])[path].tobytes()
        }
        for kind in KINDS
        if before[kind] is not None
    }


KINDS = ('params', 'batch_stats', 'ema_params', 'ema_batch_stats')
STATISTICS = {'bn/mean', 'bn/var'}


def config_of(freeze, **overrides):
    return tiny_config(
        freeze=freeze,
        training__batch_size=8,
        training__ema_decay=0.9,
        schedule__warmup='0 steps',
        **overrides,
    )


@pytest.mark.parametrize('accumulate', split([1, 2], [1]))
def test_the_statistics_of_a_frozen_layer_stay_and_others_move(accumulate):
    frozen = moved_by(config_of('^bn', training__accumulate=accumulate))
    assert not frozen['batch_stats'] and not frozen['ema_batch_stats']
    rest = {'conv/kernel', 'hidden/kernel', 'hidden/bias', 'head/kernel', 'head/bias'}
    assert frozen['params'] >= rest and not any('bn' in name for name in frozen['params'])
    assert frozen['params'] == frozen['ema_params']


@pytest.mark.parametrize('freeze', split(['conv', 'bn/scale'], ['bn/scale']))
def test_a_layer_with_a_parameter_that_is_trained_has_statistics_that_move(freeze):
    moved = moved_by(config_of(freeze))
    assert moved['batch_stats'] == moved['ema_batch_stats'] == STATISTICS


def test_what_counts_as_frozen_in_a_resnet_20():
    shapes = abstract_variables(create_model('resnet20', num_classes=10), (32, 32, 3))
    old, new = (jax.tree.map(lambda _, value=value: value, shapes) for value in (0, 1))
    kept = RateFactors('^conv1|^bn1|layer1|layer2_0').keep_frozen(old, new)
    stays = {path[0] for path, value in flatten_dict(kept['batch_stats']).items() if not value}
    moves = {path[0] for path, value in flatten_dict(kept['batch_stats']).items() if value}
    assert stays == {'bn1', 'layer1_0', 'layer1_1', 'layer1_2', 'layer2_0'}
    assert moves == {'layer2_1', 'layer2_2', 'layer3_0', 'layer3_1', 'layer3_2'}
    everything = RateFactors(None, (('bn', 0.0),)).keep_frozen(old, new)
    assert not any(flatten_dict(everything['batch_stats']).values())
    assert RateFactors().keep_frozen(old, new) is new


def test_statistics_without_parameters_go_by_the_module_around_them():
    old = {'params': {'block': {'conv': {'kernel': 0}}, 'head': {'bias': 0}}}
    old['batch_stats'] = {'block': {'bn': {'mean': 0}}}
    new = jax.tree.map(lambda _: 1, old)
    assert RateFactors('block').keep_frozen(old, new)['batch_stats']['block']['bn']['mean'] == 0
    assert RateFactors('head').keep_frozen(old, new)['batch_stats']['block']['bn']['mean'] == 1


@pytest.mark.slow
def test_a_resnet_20_keeps_the_statistics_of_its_frozen_stages():
    config = config_of('^conv1|^bn1|layer1|layer2')
    config.model = {'name': 'resnet20'}
    config.preprocess.train = config.preprocess.eval = 'resize(32)|rgb'
    moved = moved_by(config)
    assert moved['batch_stats'] == moved['ema_batch_stats']
    assert {name.split('/')[0] for name in moved['batch_stats']} == {
        'layer3_0',
        'layer3_1',
        'layer3_2',
    }
