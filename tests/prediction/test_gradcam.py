"""Grad-CAM equals its formula, finds a known pattern, and works for every model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.models.common import NARROW, narrow_model
from tests.processes import run_module
from tests.tiers import split
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.models import create_model
from vision.models.base import ImageModel
from vision.models.layers import Conv, Dense, global_avg_pool
from vision.models.weights.fold import fold_batch_norm
from vision.prediction import Classifier, gradcam
from vision.prediction.explain import draw_heat_maps


class TwoStages(ImageModel):
    """A network that can be differentiated by hand: a convolution, ReLU and a dense layer."""

    @nn.compact
    def __call__(self, images, train):
        endpoints = {}
        x = nn.relu(Conv(3, 3, padding=1, name='conv')(images))
        x = self.record(endpoints, 'stage', x)
        x = self.record(endpoints, 'features', x.reshape(len(x), -1))
        return Dense(self.num_classes, name='head')(x), endpoints


class Averaged(ImageModel):
    """Three convolutions and a mean over positions: the class's pattern may be anywhere."""

    @nn.compact
    def __call__(self, images, train):
        endpoints, x = {}, images
        for i, (width, strides) in enumerate(((16, 1), (32, 2), (32, 2))):
            x = nn.relu(Conv(width, 3, strides=strides, padding=1, name=f'conv{i}')(x))
            x = self.record(endpoints, f'stage{i}', x)
        x = self.record(endpoints, 'features', global_avg_pool(x))
        return Dense(self.num_classes, name='head')(x), endpoints


def test_equals_the_formula_worked_out_by_hand():
    """The logit is linear in the stage, so its gradient is the head's weights (eq. 1 and 2)."""
    model = TwoStages(num_classes=4)
    images = jax.random.normal(jax.random.key(0), (2, 5, 6, 1))
    init = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False)['params'])
    variables = {'params': init(images)}
    classes = jnp.array([[0, 3], [2, -1]])
    grad_cam = jax.jit(lambda v, x: gradcam.grad_cam(model, v, x, classes))
    maps, logits = grad_cam(variables, images)
    expected_logits, endpoints = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        variables, images
    )
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5)
    activation = np.asarray(endpoints['stage'])
    head = np.asarray(variables['params']['head']['kernel']).reshape(5, 6, 3, 4)
    chosen = [[0, 3], [2, int(logits[1].argmax())]]
    for i in range(2):
        for j in range(2):
            weights = head[..., chosen[i][j]].mean(axis=(0, 1))
            expected = np.maximum((activation[i] * weights).sum(-1), 0)
            np.testing.assert_allclose(maps[i, j], expected, rtol=1e-4, atol=1e-6)


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ('name', 'size', 'channels', 'stage'),
    [
        ('lenet5', 32, 1, 'stage2'),
        ('lenet5_1998', 32, 1, 's4'),
        pytest.param('resnet20', 16, 3, 'stage3', marks=slow),
        pytest.param('alexnet', 64, 3, 'stage4', marks=slow),
        pytest.param('vgg11', 64, 3, 'stage5', marks=slow),
        pytest.param('vgg_a', 64, 3, 'stage5', marks=slow),
        pytest.param('googlenet', 64, 3, '5b', marks=slow),
        pytest.param('inception_v3', 107, 3, '7c', marks=slow),
        pytest.param('resnet50_v2', 64, 3, 'stage4', marks=slow),
        pytest.param('vit_s16', 32, 3, 'block0', marks=slow),
        pytest.param('convnext_tiny', 32, 3, 'stage2', marks=slow),
        pytest.param('efficientnet_b0', 32, 3, 'top', marks=slow),
        pytest.param('seresnet50', 32, 3, 'stage2', marks=slow),
        pytest.param('resnet50d', 32, 3, 'stage2', marks=slow),
        pytest.param('wide_resnet40_4', 32, 3, 'stage3', marks=slow),
        pytest.param('sscd_resnet50', 32, 3, 'stage2', marks=slow),
    ],
)
def test_the_weights_are_mean_derivatives(name, size, channels, stage):
    """The weight of a map is the derivative with respect to a constant added to it.

    This holds for every model, by default for its last stage.
    """
    # VGG's dense form and the auxiliary heads do not accept inputs as small as these.
    small = {
        'vgg_a': {'dense_evaluation': False},
        'googlenet': {'aux_heads': False},
        'inception_v3': {'aux_heads': False},
    }
    model = create_model(name, num_classes=10, **(small | NARROW).get(name, {}))
    images = jax.random.normal(jax.random.key(0), (1, size, size, channels))
    variables = jax.jit(lambda: model.init(jax.random.key(1), images, train=False))()
    if name in NARROW:  # no layer is zero, so that the map depends on the image
        variables |= narrow_model(name, images.shape[1:])[1]
    zeros, variables = (
        variables['perturbations'],
        {k: v for k, v in variables.items() if k != 'perturbations'},
    )

    @jax.jit
    def ours(variables):
        return gradcam.grad_cam(model, variables, images, jnp.array([[1]]))[0][0, 0]

    def logit(shift, variables):
        moved = {**zeros, stage: jnp.broadcast_to(shift, zeros[stage].shape)}
        logits, endpoints = model.apply({**variables, 'perturbations': moved}, images, train=False)
        return logits[0, 1], endpoints[stage][0]

    shift = jnp.zeros(zeros[stage].shape[-1])
    slopes, activation = jax.jit(jax.grad(logit, has_aux=True))(shift, variables)
    weights = slopes / np.prod(activation.shape[:2])
    expected = np.maximum((np.asarray(activation) * np.asarray(weights)).sum(-1), 0)
    np.testing.assert_allclose(
        ours(variables), expected, rtol=1e-3, atol=1e-7 + 1e-4 * expected.max()
    )


@pytest.mark.slow
def test_folded_and_not_are_alike():
    model = create_model('resnet20', num_classes=10)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(images)
    variables = {k: variables[k] for k in ('params', 'batch_stats')}
    variables['batch_stats'] = jax.tree.map(lambda x: x + 0.3, variables['batch_stats'])
    folded, their = fold_batch_norm(model, variables, (16, 16, 3))
    classes = jnp.array([[3, 5], [0, 1]])
    one, _ = gradcam.grad_cam(model, variables, images, classes)
    other, _ = gradcam.grad_cam(folded, their, images, classes)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.max()))


def corner_images(rng, corner, count):
    """Images of noise with the pattern of their class in one corner; class 3 has no pattern.

    Without class 3 the absence of patterns would be evidence for one of the other classes.
    """
    labels = rng.integers(0, 4, count)
    images = rng.integers(0, 60, (count, 32, 32, 1), dtype=np.uint8)
    y, x = (corner // 2) * 22 + 1, (corner % 2) * 22 + 1
    place = images[:, y : y + 8, x : x + 8]
    place[labels == 0, ::2] = 255
    place[labels == 1, :, ::2] = 255
    place[labels == 2, 2:6, 2:6] = 255
    return images, labels


@pytest.fixture(scope='module', params=split([1, 2], []))
def corner_run(request, tmp_path_factory):
    from vision.training import train

    folder = tmp_path_factory.mktemp('corner')
    rng = np.random.default_rng(request.param)
    splits = {s: corner_images(rng, request.param, n) for s, n in (('train', 768), ('test', 96))}
    arrays = {f'{p}_{s}': splits[s][i] for s in splits for i, p in enumerate('xy')}
    np.savez(folder / 'data.npz', **arrays)
    config = default_config()
    config.data = ConfigDict({'source': 'npz', 'path': str(folder / 'data.npz'), 'validation': 64})
    config.model.name = f'{__name__}:Averaged'
    config.optimizer.lr, config.schedule.warmup = 0.03, '20 steps'
    config.preprocess.mean, config.preprocess.std = (0.25,), (0.2,)
    config.training.batch_size, config.training.duration = 64, '12 epochs'
    config.training.eval_every = '12 epochs'
    results = train(config, folder / 'run')
    assert results['test']['top1'] > 0.95
    images, labels = splits['test']
    return folder / 'run', request.param, images[labels < 3]


def test_lights_the_corner_that_tells_the_class(corner_run):
    workdir, corner, images = corner_run
    maps = Classifier.from_workdir(workdir).explain(images)
    assert maps.shape == (len(images), 32, 32) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1
    peaks = maps.reshape(len(maps), -1).argmax(axis=1)
    quadrants = 2 * (peaks // 32 >= 16) + (peaks % 32 >= 16)
    assert (quadrants == corner).mean() > 0.95
    rows, columns = (slice(16 * i, 16 * i + 16) for i in divmod(corner, 2))
    inside = maps[:, rows, columns].sum(axis=(1, 2)) / np.maximum(maps.sum(axis=(1, 2)), 1e-9)
    assert np.median(inside) > 0.8


def test_explain_takes_classes_stages_and_nothing_else(classifier, digits):
    images = digits.images[:6]
    likeliest = classifier.explain(images)
    by_class = classifier.explain(images, classifier(images).argmax(1))
    np.testing.assert_allclose(likeliest, by_class, atol=1e-5)
    assert classifier.explain(images, 3, 'stage1').shape == (6, 32, 32)
    assert classifier.explain(images[:0]).shape == (0, 32, 32)
    with pytest.raises(UserError, match='stage2'):
        classifier.explain(images, stage='stage3')
    with pytest.raises(UserError, match='0 … 9'):
        classifier.explain(images, 10)


def test_heat_maps_of_images_in_memory_are_a_figure(classifier, digits):
    figure = draw_heat_maps(classifier, digits.images[:2])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == 'images, example 0' and titles[4] == 'images, example 1'
    names = [name for name, _ in classifier.predict(digits.images[0], top_k=3)]
    assert [title.split(':')[0] for title in titles[1:4]] == names
    assert all(axes.get_images()[0].get_array().shape == (32, 32, 3) for axes in figure.axes)


def test_predict_draws_a_png_and_a_page(workdir, digits, tmp_path):
    for i in range(3):
        Image.fromarray(digits.images[i, ..., 0]).save(tmp_path / f'<b>{i}.png')
    (tmp_path / 'broken.png').write_bytes(b'no')
    done = run_module(
        'experiments.predict', f'--workdir={workdir}', tmp_path, f'--explain={tmp_path}/out.PNG',
        '--format=json',
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith('[')
    assert Image.open(tmp_path / 'out.PNG').size[0] > 400
    done = run_module(
        'experiments.predict', f'--workdir={workdir}', f'{tmp_path}/[<b]*.png',
        f'--explain={tmp_path}/out.html',
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    page = (tmp_path / 'out.html').read_text()
    assert page.count('<img src="data:image/png;base64,') == 3 * 4
    assert '&lt;b&gt;1.png' in page and '<b>' not in page
    assert 'http' not in page and '<script' not in page


@pytest.mark.parametrize('name', ['out.jpg', 'nowhere/out.png'])
def test_where_a_picture_cannot_go(tmp_path, name):
    done = run_module(
        'experiments.predict', '--workdir=x', 'docs/digits', f'--explain={tmp_path}/{name}'
    )
    assert done.returncode == 2 and done.stdout == ''
    assert len(done.stderr.strip().splitlines()) == 1 and '--explain' in done.stderr
