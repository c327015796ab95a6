"""Initialisation from pretrained weights on a folder of photos; freezing; learning rate factors."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from PIL import Image

from configs import folder_finetune
from tests.models.common import NARROW
from tests.models.weights.test_pretrained import save, torch_state
from tests.training.tiny import tiny_config
from vision.core import config as config_lib
from vision.core.errors import UserError
from vision.data.arrays import digits
from vision.evaluation.run import load_run
from vision.models.positions import resize_positions
from vision.prediction import Classifier
from vision.training import train
from vision.training.init_from import init_from
from vision.training.setup import setup
from vision.training.step import init_state, make_train_step


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Crops of two real photos: a temple in China and a flower."""
    from sklearn.datasets import load_sample_images

    root = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for name, photo in zip(('china', 'flower'), load_sample_images().images, strict=True):
        (root / name).mkdir()
        for i in range(40):
            y, x = rng.integers(0, (427 - 128, 640 - 128))
            Image.fromarray(photo[y : y + 128, x : x + 128]).save(root / name / f'{i}.jpg')
    return root


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    # One block of each stage is enough, and half as long to compile.
    state = {k: v for k, v in torch_state('resnet18').items() if not re.match(r'layer\d\.1\.', k)}
    return state, save(tmp_path_factory.mktemp('weights') / 'resnet18.safetensors', state)


def small(config, photos, weights):
    config.model.update({'name': 'resnet18', 'stage_sizes': (1, 1, 1, 1)})
    config.init_from, config.data.path = weights[1], str(photos)
    config.preprocess.train = 'decode|random_resized_crop(64)|flip_lr'
    config.preprocess.eval = 'decode|resize_small(72)|central_crop(64)'
    config.training.batch_size, config.training.duration = 8, '6 steps'
    config.training.eval_every, config.schedule.warmup = '6 steps', '1 steps'
    config.evaluation.batch_size = 8
    return config


def start(config):
    run = setup(config)
    state = init_state(run.recipe, run.input_shape, run.mesh)
    return run, init_from(config.init_from, 'resnet18', state)


def host(tree):
    return jax.tree.map(np.array, tree)


def steps(run, state, count=3):
    from vision.preprocess.inputs import TrainBatches

    step = make_train_step(run.recipe, run.mesh)
    batches = TrainBatches(run.train, run.loading, run.mesh, 0)
    for _ in range(count):
        state, _ = step(state, next(batches))
    return state


def test_the_backbone_is_loaded_and_the_head_is_new(photos, weights):
    config = small(folder_finetune.get_config('resnet50'), photos, weights)
    _, state = start(config)
    kernel = weights[0]['layer3.0.conv2.weight'].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(state.params['layer3_0']['conv2']['kernel'], kernel)
    np.testing.assert_array_equal(state.batch_stats['bn1']['var'], weights[0]['bn1.running_var'])
    assert state.params['fc']['kernel'].shape == (512, 2)


def test_a_frozen_backbone_keeps_every_bit_and_the_head_learns(photos, weights):
    config = small(folder_finetune.get_config('frozen'), photos, weights)
    run, state = start(config)
    before = host(state.variables)
    after = host(steps(run, state).variables)
    head = after['params'].pop('fc'), before['params'].pop('fc')
    assert not np.array_equal(head[0]['kernel'], head[1]['kernel'])
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.slow
def test_a_factor_scales_the_step_of_what_its_pattern_names(photos, weights):
    """After one step of plain SGD, the change is the factor times the change at factor 1."""
    moved = {}
    for factor in (1.0, 0.1):
        config = small(folder_finetune.get_config('resnet50'), photos, weights)
        config.lr_factors = (('backbone', factor),)
        config.schedule.warmup, config.schedule.name = '0 steps', 'constant'
        run, state = start(config)
        before = host(state.params)
        after = host(steps(run, state, 1).params)
        moved[factor] = jax.tree.map(lambda a, b: a - b, after, before)
    full, tenth = moved[1.0], moved[0.1]
    np.testing.assert_allclose(tenth['fc']['kernel'], full['fc']['kernel'], rtol=1e-4, atol=1e-7)
    for name in ('conv1', 'layer4_0'):
        ours, theirs = jax.tree.leaves(tenth[name])[-1], jax.tree.leaves(full[name])[-1]
        np.testing.assert_allclose(ours, 0.1 * theirs, rtol=0.02, atol=1e-7)
        assert np.abs(theirs).max() > 0


@pytest.mark.slow
def test_a_run_starts_from_another_runs_workdir(photos, weights, tmp_path):
    config = small(folder_finetune.get_config('frozen'), photos, weights)
    results = train(config, tmp_path / 'first')
    assert results['validation']['count'] + results['test']['count'] < 80
    config.init_from = str(tmp_path / 'first')
    _, state = start(config)
    np.testing.assert_array_equal(
        state.params['layer1_0']['conv1']['kernel'],
        weights[0]['layer1.0.conv1.weight'].transpose(2, 3, 1, 0),
    )
    other = dataclasses.replace(state, params={**state.params, 'fc9': state.params['fc']})
    with pytest.raises(UserError, match='missing fc9/kernel'):
        init_from(str(tmp_path / 'first'), 'resnet18', other)


@pytest.mark.slow
def test_a_vit_of_a_workdir_takes_images_of_other_sizes(tmp_path):
    """Trained at 24 px, it predicts at 32 px, and a run at 40 px begins with its weights."""
    config = tiny_config(model__name='vit_s16', preprocess__train='resize(24)')
    config.update_from_flattened_dict({'training.duration': '4 steps', 'optimizer.lr': 0.01})
    with config.unlocked():
        config.model.update(NARROW['vit_s16'])
    train(config, tmp_path / 'first')
    first = load_run(tmp_path / 'first')
    positions = jax.device_get(first.variables['params']['pos_embed'])
    assert positions.shape == (4, 4, 48)
    images = digits('test').images[:3]
    names = [name for name, _ in Classifier(first).predict(images[0], top_k=10)]
    assert sorted(names) == [str(i) for i in range(10)]
    # The positions are resized to the new grid, everything else is the first run's.
    config.preprocess.train = config.preprocess.eval = 'resize(40)'
    config.init_from = str(tmp_path / 'first')
    run = setup(config)
    state = init_from(config.init_from, 'vit_s16', init_state(run.recipe, (40, 40, 1), run.mesh))
    began = jax.device_get(state.params)
    resized = resize_positions(positions, (5, 5), 'timm')
    np.testing.assert_allclose(began['pos_embed'], resized, atol=1e-6)
    others = jax.device_get(first.variables['params']) | {'pos_embed': began['pos_embed']}
    jax.tree.map(np.testing.assert_array_equal, began, others)
    train(config, tmp_path / 'second')
    second = Classifier(tmp_path / 'second')
    assert second.run.input_shape == (40, 40, 1)
    assert second(images).shape == (3, 10) and np.isfinite(second(images)).all()


@pytest.mark.parametrize(('pattern', 'factor'), [('(', 0.5), ('conv', -1), ('conv', 'a')])
def test_patterns_and_factors_that_make_no_sense(pattern, factor):
    config = folder_finetune.get_config()
    config.lr_factors = ((pattern, factor),)
    with pytest.raises(UserError, match=r'regular expression|lr_factors'):
        config_lib.resolve(config)


def test_a_source_that_is_refused_leaves_the_workdir_to_the_right_one(tmp_path):
    config = tiny_config()
    (tmp_path / 'weights.safetensors').touch()
    config.init_from = str(tmp_path / 'weights.safetensors')
    with pytest.raises(UserError, match='no torchvision or timm weights'):
        train(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
    config.init_from = None
    assert train(config, tmp_path / 'run')['test']['count'] > 0
