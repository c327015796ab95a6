"""The configs agree with papers.md: models, learning rates, lengths, optimizers, augmentation."""

import importlib
import importlib.resources
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.tiers import split
from tests.training.tiny import build_optimizer
from vision import data
from vision.core import config as config_lib
from vision.core import durations
from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.models import create_model
from vision.models.base import init_variables
from vision.preprocess import inputs
from vision.preprocess import ops as ops_lib
from vision.preprocess.decode import read
from vision.preprocess.ops.on_host import apply, draw
from vision.task import losses
from vision.training.optimizer import matches
from vision.training.schedules import make_schedule
from vision.training.setup import loading_of, make_recipe
from vision.training.step import init_state, make_train_step

IMAGENET, CIFAR, MNIST = 1_268_355, 45_000, 55_000  # examples to train on, without those held out

# For each config and argument: parameters, examples, steps, and the learning rates just before and
# at each of the paper's milestones, in epochs or steps.
CASES = {
    'mnist_lenet5:1998': (60_000, MNIST, 8_594, [
        ('0 epochs', 6e-3), ('1.99 epochs', 6e-3), ('2 epochs', 2.4e-3), ('5 epochs', 1.2e-3),
        ('8 epochs', 6e-4), ('11.99 epochs', 6e-4), ('12 epochs', 1.2e-4)]),
    'mnist_lenet5:1998-distorted': (60_000, MNIST, 8_594, [
        ('1.99 epochs', 6e-3), ('2 epochs', 2.4e-3), ('12 epochs', 1.2e-4)]),
    'imagenet_alexnet': (60_965_224, IMAGENET, 891_812, [
        ('29.9 epochs', 0.01), ('30 epochs', 1e-3), ('60 epochs', 1e-4), ('80 epochs', 1e-5)]),
    'imagenet_vgg:11': (132_863_336, IMAGENET, 366_634, [('0 epochs', 0.01)]),
    'imagenet_vgg:13': (133_047_848, IMAGENET, 366_634, [('49.9 epochs', 1e-3)]),
    'imagenet_vgg:16': (138_357_544, IMAGENET, 366_634, [
        ('24.9 epochs', 0.01), ('25 epochs', 1e-3), ('50 epochs', 1e-4), ('73 epochs', 1e-5)]),
    'imagenet_vgg:19': (143_667_240, IMAGENET, 366_634, [('73 epochs', 1e-5)]),
    'imagenet_googlenet': (13_378_280, IMAGENET, 1_238_628, [
        ('7.9 epochs', 0.01), ('8.1 epochs', 0.0096), ('16.1 epochs', 0.01 * 0.96**2)]),
    'imagenet_inception_v3': (27_161_264, IMAGENET, 79_272, [
        ('1.9 epochs', 0.045), ('2.1 epochs', 0.045 * 0.94), ('98.1 epochs', 0.045 * 0.94**49)]),
    'imagenet': (11_689_512, IMAGENET, 445_906, [
        ('29.9 epochs', 0.1), ('30 epochs', 0.01), ('60 epochs', 1e-3)]),
    'imagenet_resnet:18': (None, IMAGENET, 600_000, [('599999 steps', 0.1)]),
    'imagenet_resnet:34a': (None, IMAGENET, 600_000, [('599999 steps', 0.1)]),
    'imagenet_resnet:34b': (21_797_672, IMAGENET, 600_000, [('599999 steps', 0.1)]),
    'imagenet_resnet:34c': (None, IMAGENET, 600_000, [('599999 steps', 0.1)]),
    'imagenet_resnet:50': (25_557_032, IMAGENET, 600_000, [('599999 steps', 0.1)]),
    'imagenet_resnet:101': (44_549_160, IMAGENET, 600_000, []),
    'imagenet_resnet:152': (60_192_808, IMAGENET, 600_000, []),
    'imagenet_resnet:50-v1': (25_557_032, IMAGENET, 445_906, [
        ('29.9 epochs', 0.1), ('30 epochs', 0.01), ('60 epochs', 1e-3), ('89 epochs', 1e-3)]),
    'imagenet_resnet:50-v2': (25_557_032, IMAGENET, 743_177, [
        ('0 epochs', 0.0), ('2.5 epochs', 0.25), ('5 epochs', 0.5), ('302.5 epochs', 0.25),
        ('600 epochs', 0.0)]),
    'cifar10_resnet:20': (269_722, CIFAR, 64_000, [
        ('31999 steps', 0.1), ('32000 steps', 0.01), ('48000 steps', 1e-3), ('63999 steps', 1e-3)]),
    'cifar10_resnet:32': (464_154, CIFAR, 64_000, [('48000 steps', 1e-3)]),
    'cifar10_resnet:44': (658_586, CIFAR, 64_000, [('48000 steps', 1e-3)]),
    'cifar10_resnet:56': (853_018, CIFAR, 64_000, [('48000 steps', 1e-3)]),
    'cifar10_resnet:110': (1_727_962, CIFAR, 64_000, [
        ('399 steps', 0.01), ('400 steps', 0.1), ('32000 steps', 0.01), ('48000 steps', 1e-3)]),
    **{f'cifar10_resnet:{depth}': (None, CIFAR, 64_000, [
        ('399 steps', 0.01), ('400 steps', 0.1), ('32000 steps', 0.01), ('48000 steps', 1e-3)])
       for depth in ('1202', '110-v2', '164-v2')},
    'imagenet_resnet_strikes_back:a1': (25_557_032, IMAGENET, 371_588, [
        ('0 epochs', 0.0), ('2.5 epochs', 2.5e-3), ('5 epochs', 5e-3), ('302.5 epochs', 2.5e-3),
        ('600 epochs', 0.0)]),
    'imagenet_resnet_strikes_back:a2': (25_557_032, IMAGENET, 185_794, [
        ('5 epochs', 5e-3), ('152.5 epochs', 2.5e-3), ('300 epochs', 0.0)]),
    'imagenet_resnet_strikes_back:a3': (25_557_032, IMAGENET, 61_931, [
        ('5 epochs', 8e-3), ('52.5 epochs', 4e-3), ('100 epochs', 0.0)]),
    'imagenet_vit:90': (21_974_632, IMAGENET, 111_477, [
        ('5000 steps', 5e-4), ('10000 steps', 1e-3), ('60738 steps', 5e-4), ('90 epochs', 0.0)]),
    'imagenet_vit:300': (21_974_632, IMAGENET, 371_588, [
        ('10000 steps', 1e-3), ('190794 steps', 5e-4), ('300 epochs', 0.0)]),
    'imagenet_deit3:400': (22_059_496, IMAGENET, 247_726, [
        ('2.5 epochs', 1.5e-3), ('5 epochs', 3e-3), ('202.5 epochs', 1.5e-3), ('400 epochs', 0.0)]),
    'imagenet_deit3:800': (22_059_496, IMAGENET, 495_451, [
        ('5 epochs', 3e-3), ('402.5 epochs', 1.5e-3), ('800 epochs', 0.0)]),
    'imagenet_convnext': (28_589_128, IMAGENET, 92_897, [
        ('10 epochs', 2e-3), ('20 epochs', 4e-3), ('160 epochs', 2e-3), ('300 epochs', 0.0)]),
    'cifar_wide_resnet:10': (36_479_194, CIFAR, 70_313, [
        ('59.9 epochs', 0.1), ('60 epochs', 0.02), ('120 epochs', 4e-3), ('160 epochs', 8e-4)]),
    'cifar_wide_resnet:100': (None, CIFAR, 70_313, [('199 epochs', 8e-4)]),
    'imagenet_efficientnet': (5_288_548, IMAGENET, 108_380, [
        ('2.5 epochs', 0.128), ('5 epochs', 0.256), ('7.3 epochs', 0.256),
        ('7.5 epochs', 0.256 * 0.97), ('12.3 epochs', 0.256 * 0.97**3)]),
}  # fmt: skip
# Recipes that are not from a paper: SGD with momentum, a warm-up, a learning rate that falls to 0.
OWN = (
    'mnist_lenet5', 'mnist_lenet5:plain', 'mnist_lenet5:1998-cosine', 'mnist_best', 'digits_lenet5',
    'fashion_mnist_lenet5', 'fashion_mnist:resnet20', 'fashion_mnist:vgg11_bn', 'fashion_mnist:googlenet',
    'fashion_mnist:resnet18',
    'ablation:resnet', 'ablation:vgg',
)  # fmt: skip


def load(name):
    file, _, argument = name.partition(':')
    return importlib.import_module(f'configs.{file}').get_config(*([argument] if argument else []))


def parameters(config):
    model = create_model(**{'num_classes': 10} | config.model.to_dict())
    images = jnp.zeros((1, *model.input_shape))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=True))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes['params']))


@pytest.mark.parametrize('name', CASES)
def test_length_and_rates_are_the_papers(name):
    config, (_, examples, steps, rates) = load(name), CASES[name]
    config_lib.check(config)

    def to_steps(text, key):
        return durations.to_steps(text, config.training.batch_size, examples, key)

    total = to_steps(config.training.duration, 'training.duration')
    assert total == steps
    schedule = make_schedule(config.schedule, config.optimizer.lr, total, to_steps)
    for when, rate in rates:
        step = to_steps(when, 'when')
        # A milestone may be half a step off if an epoch is not a whole number of steps.
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-3, atol=1e-9, err_msg=when)


@pytest.mark.parametrize('name', (*OWN, 'fashion_mnist_vit'))
def test_our_own_recipes_warm_up_and_fall_to_nothing(name):
    config = load(name)
    config_lib.check(config)

    def to_steps(text, key):
        return durations.to_steps(text, config.training.batch_size, 10_000, key)

    total = to_steps(config.training.duration, 'training.duration')
    warmup = to_steps(config.schedule.warmup, 'schedule.warmup')
    rate, lr = (
        make_schedule(config.schedule, config.optimizer.lr, total, to_steps),
        config.optimizer.lr,
    )
    assert 0 < warmup < total / 4
    np.testing.assert_allclose([rate(0), rate(warmup), rate(total)], [0, lr, 0], atol=1e-6)
    np.testing.assert_allclose(rate(warmup // 2), lr * (warmup // 2) / warmup, rtol=1e-5)
    middle = warmup + (total - warmup) / 2
    np.testing.assert_allclose(rate(middle), lr / 2, rtol=1e-3)  # for a line and for a cosine
    falling = [float(rate(step)) for step in range(warmup, total, total // 20)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize('name', OWN)
def test_two_steps_of_our_own_recipes_are_sgd_with_their_momentum(name):
    config, gradients, trail = two_steps(name)
    momentum, nesterov = config.optimizer.momentum, config.optimizer.nesterov
    assert momentum > 0 and config.weight_decay > 0
    for leaf, start, d in (
        ('kernel', [[0.5, -2.0]], config.weight_decay),
        ('bias', [0.3, 0.1], 0.0),
    ):
        w, velocity = np.array(start), 0.0
        for gradient, got in zip(gradients, trail, strict=True):
            g = gradient['conv'][leaf] + d * w
            velocity = momentum * velocity + g
            w = w - config.optimizer.lr * (g + momentum * velocity if nesterov else velocity)
            np.testing.assert_allclose(got['conv'][leaf], w, rtol=1e-6)


COUNTED = [name for name, case in CASES.items() if case[0]]
# These take a second each to trace, and tests/models/test_counts.py already counts them.
TRACED = (
    'mnist_lenet5:1998',
    'imagenet_alexnet',
    'imagenet_vgg:11',
    'imagenet_googlenet',
    'imagenet_resnet:50',
    'cifar10_resnet:20',
)


@pytest.mark.parametrize('name', split(COUNTED, TRACED))
def test_the_model_has_the_papers_parameters(name):
    config = load(name)
    with config.unlocked():
        if name.startswith('imagenet'):
            config.model.num_classes = 1000
    assert parameters(config) == CASES[name][0]


@pytest.mark.parametrize(
    'name', ['imagenet_vgg:12', 'imagenet_resnet:51', 'cifar10_resnet:21', 'mnist_lenet5:1999',
             'fashion_mnist:resnet21', 'fashion_mnist_lenet5:1998', 'cifar_wide_resnet:11',
             'imagenet_resnet_strikes_back:a4', 'imagenet_vit:91', 'imagenet_deit3:600',
             'fashion_mnist_vit:firm'],
)  # fmt: skip
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(UserError, match='Known: '):
        load(name)


def two_steps(name, size=1.0):
    """Returns the config, gradients of norms .56 · size and .81 · size, and the parameters after."""
    config = load(name)
    config.schedule.warmup = '0 steps'  # the rate is constant here
    params = {
        'conv': {'kernel': jnp.array([[0.5, -2.0]]), 'bias': jnp.array([0.3, 0.1])},
        'fc': {'bias': jnp.array([0.7])},
    }
    gradients = [
        {'conv': {'kernel': jnp.array([[0.1, 0.2]]), 'bias': jnp.array([-0.3, 0.4])}},
        {'conv': {'kernel': jnp.array([[-0.2, 0.1]]), 'bias': jnp.array([0.5, 0.6])}},
    ]
    gradients = [{'fc': {'bias': jnp.zeros(1)}} | g for g in gradients]
    gradients = jax.tree.map(lambda g: size * g, gradients)
    optimizer = build_optimizer(config, lambda step: config.optimizer.lr)
    state, trail = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params, value=jnp.zeros(()))
        params = jax.tree.map(jnp.add, params, updates)
        trail.append(jax.device_get(params))
    return config, [jax.device_get(g) for g in gradients], trail


@pytest.mark.parametrize(
    ('name', 'decay', 'bias_decay'),
    [
        ('imagenet_alexnet', 5e-4, 5e-4),
        ('imagenet_vgg:16', 5e-4, 0.0),
        ('imagenet_googlenet', 2e-4, 0.0),
        ('imagenet', 1e-4, 0.0),
        ('imagenet_resnet:50', 1e-4, 0.0),
        ('imagenet_resnet:50-v1', 1e-4, 1e-4),
        ('imagenet_resnet:50-v2', 2e-5, 0.0),
        ('cifar10_resnet:56', 1e-4, 0.0),
        ('cifar10_resnet:110', 1e-4, 0.0),
        ('mnist_lenet5:1998', 0.0, 0.0),
        ('mnist_lenet5:1998-distorted', 0.0, 0.0),
    ],
)
def test_two_steps_are_sgd_with_momentum(name, decay, bias_decay):
    config, gradients, trail = two_steps(name)
    for leaf, start, d in (
        ('kernel', [[0.5, -2.0]], decay),
        ('bias', [0.3, 0.1], bias_decay),
    ):
        w, velocity = np.array(start), 0.0
        for gradient, got in zip(gradients, trail, strict=True):
            velocity = 0.9 * velocity + gradient['conv'][leaf] + d * w
            w = w - config.optimizer.lr * velocity
            np.testing.assert_allclose(got['conv'][leaf], w, rtol=1e-6)


def test_of_the_biases_torchvisions_second_recipe_decays_the_classifiers():
    config, _, (first, second) = two_steps('imagenet_resnet:50-v2')
    decay, lr = 2e-5, config.optimizer.lr
    velocity = decay * 0.7
    w = 0.7 - lr * velocity
    np.testing.assert_allclose(first['fc']['bias'], w, rtol=1e-7)
    np.testing.assert_allclose(
        second['fc']['bias'], w - lr * (0.9 * velocity + decay * w), rtol=1e-7
    )
    assert abs(second['fc']['bias'][0] - 0.7) > 1e-5


@pytest.mark.parametrize('size', [1.0, 3.0, 100.0])
def test_two_steps_of_inception_are_rmsprop_with_epsilon_in_the_root(size):
    """Clipping at norm 2, for gradients of which none, the second, or both are above it."""
    _, gradients, trail = two_steps('imagenet_inception_v3', size)
    norms = [np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g))) for g in gradients]
    assert [norm > 2 for norm in norms] == [size > 50, size > 2]
    for leaf, start, d in (('kernel', [[0.5, -2.0]], 4e-5), ('bias', [0.3, 0.1], 0.0)):
        w, square, momentum = np.array(start), 1.0, 0.0
        for gradient, norm, got in zip(gradients, norms, trail, strict=True):
            g = gradient['conv'][leaf] * min(1.0, 2.0 / norm) + d * w
            square = 0.9 * square + 0.1 * g**2
            momentum = 0.9 * momentum + 0.045 * g / np.sqrt(square + 1.0)
            w = w - momentum
            np.testing.assert_allclose(got['conv'][leaf], w, rtol=1e-6)


def by_hand(rule, gradients, trail, decay, size_limit=None, bias_decay=0.0):
    """Checks two steps of `conv` against a rule (parameter, gradient, state, step) in NumPy."""
    norms = [np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g))) for g in gradients]
    for leaf, start, d in (('kernel', [[0.5, -2.0]], decay), ('bias', [0.3, 0.1], bias_decay)):
        w, state = np.array(start), None
        for step, (gradient, norm, got) in enumerate(zip(gradients, norms, trail, strict=True), 1):
            scale = 1.0 if size_limit is None else min(1.0, size_limit / norm)
            w, state = rule(w, scale * gradient['conv'][leaf], state, step, d)
            np.testing.assert_allclose(got['conv'][leaf], w, rtol=1e-5)


def adam_direction(g, state, step, eps):
    """Adam's direction with β .9 and .999, and its moments."""
    m, v = state or (0.0, 0.0)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + eps), (m, v)


# A gradient below the limit on the norm, and one above it.
@pytest.mark.parametrize(
    ('name', 'lr', 'decay', 'limit', 'size'),
    [('imagenet_vit:90', 1e-3, 0.1, 1.0, 3.0), ('imagenet_convnext', 4e-3, 0.05, None, 3.0)],
)
def test_two_steps_are_adamw(name, lr, decay, limit, size):
    """Loshchilov and Hutter 2019, algorithm 2, clipped at the global norm of the paper."""

    def rule(w, g, state, step, d):
        direction, state = adam_direction(g, state, step, 1e-8)
        return w - lr * (direction + d * w), state

    _, gradients, trail = two_steps(name, size)
    by_hand(rule, gradients, trail, decay, limit)


@pytest.mark.parametrize(
    ('name', 'lr', 'decay', 'size'),
    [('imagenet_resnet_strikes_back:a3', 8e-3, 0.02, 1.0), ('imagenet_deit3', 3e-3, 0.02, 3.0)],
)
def test_two_steps_are_lamb_as_timm_has_it(name, lr, decay, size):
    """You et al. 2020, algorithm 2; clipped at norm 1, no trust ratio where nothing decays."""

    def rule(w, g, state, step, d):
        direction, state = adam_direction(g, state, step, 1e-6)
        direction = direction + d * w
        ratio = np.linalg.norm(w) / np.linalg.norm(direction) if d else 1.0
        return w - lr * ratio * direction, state

    _, gradients, trail = two_steps(name, size)
    by_hand(rule, gradients, trail, decay, 1.0)


def test_two_steps_of_the_wide_resnet_are_nesterovs():
    def rule(w, g, velocity, step, d):
        g = g + d * w
        velocity = 0.9 * (velocity if step > 1 else 0.0) + g
        return w - 0.1 * (g + 0.9 * velocity), velocity

    _, gradients, trail = two_steps('cifar_wide_resnet:100')
    by_hand(rule, gradients, trail, 5e-4, bias_decay=5e-4)


@pytest.mark.parametrize(
    'name',
    split(
        ['imagenet_deit3', 'imagenet_vit', 'imagenet_convnext', 'imagenet_resnet_strikes_back'],
        ['imagenet_vit'],
    ),
)
def test_weight_decay_leaves_out_what_timm_leaves_out(name):
    """Norms, biases, LayerScale, class tokens and position embeddings."""
    config = load(name)
    with config.unlocked():
        if 'vit' in name or 'deit3' in name:
            config.model.depth = 1
        model = create_model(**config.model.to_dict())
    shapes = jax.eval_shape(lambda: init_variables(model, (224, 224, 3), jax.random.key(0)))
    decayed = matches(config.weight_decay_pattern, shapes['params'])
    leaves = jax.tree_util.tree_leaves_with_path(shapes['params'])
    for (path, leaf), found in zip(leaves, jax.tree.leaves(decayed), strict=True):
        names = '/'.join(key.key for key in path)
        assert found == (leaf.ndim > 1 and not re.search('token|pos_embed', names)), names


def test_two_steps_of_efficientnet_are_rmsprop_as_tensorflow_has_it():
    def rule(w, g, state, step, d):
        square, momentum = state or (1.0, 0.0)
        g = g + d * w
        square = 0.9 * square + 0.1 * g**2
        momentum = 0.9 * momentum + 0.256 * g / np.sqrt(square + 1e-3)
        return w - momentum, (square, momentum)

    _, gradients, trail = two_steps('imagenet_efficientnet')
    by_hand(rule, gradients, trail, 1e-5)


AUGMENTED = {
    'imagenet_alexnet': 227,
    'imagenet_vgg:16': 224,
    'imagenet_googlenet': 224,
    'imagenet_inception_v3': 299,
    'imagenet_resnet:50': 224,
    'imagenet_resnet:50-v1': 224,
    'imagenet_resnet:50-v2': 176,
    'imagenet_deit3': 224,
    'imagenet_resnet_strikes_back:a2': 224,
    'imagenet_resnet_strikes_back:a3': 160,
    'imagenet_vit': 224,
    'imagenet_convnext': 224,
    'imagenet_efficientnet': 224,
}


def views(name, image, count):
    """Returns a photo after the config's augmentation in several epochs, uint8 [N, H, W, 3]."""
    config = load(name)
    ops = ops_lib.parse(config.preprocess.train)
    draws = draw(0, np.arange(count), np.zeros(count, int), len(ops))
    return np.stack([np.asarray(apply(ops, image, d, decoded=True)) for d in draws])


@pytest.mark.parametrize('name', split(AUGMENTED, list(AUGMENTED)[:7]))
def test_a_photo_is_augmented(name):
    import sklearn.datasets
    import tensorflow as tf

    file = importlib.resources.files(sklearn.datasets) / 'images' / 'china.jpg'
    photo = tf.constant(read(file.read_bytes()))
    size = AUGMENTED[name]
    made = views(name, photo, 4)
    assert made.shape == (4, size, size, 3) and made.dtype == np.uint8
    assert len({image.tobytes() for image in made}) == 4
    assert made.std() > 20  # the image is not blank
    evaluation = ops_lib.parse(load(name).preprocess.eval)
    assert np.asarray(apply(evaluation, photo, [], decoded=True)).std() > 20


def test_auxiliary_losses_and_smoothing_are_the_papers():
    googlenet, inception = load('imagenet_googlenet'), load('imagenet_inception_v3')
    assert (googlenet.loss.aux_weight, inception.loss.aux_weight) == (0.3, 0.4)
    smoothed = losses.smooth_labels(jnp.eye(1000)[:1], inception.loss.label_smoothing)
    np.testing.assert_allclose(smoothed[0, :2], [0.9 + 1e-4, 1e-4], rtol=1e-5)


def falls(config, source, steps, shape):
    """Returns the loss of each step of the config's model, learning rate and schedule on images."""
    mesh, batch = make_mesh(), config.training.batch_size

    def to_steps(text, key):
        return durations.to_steps(text, batch, source.num_examples, key)

    model = create_model(**{'num_classes': len(source.class_names)} | config.model.to_dict())
    recipe = make_recipe(config, model, source.class_names, steps, to_steps)
    state, step = init_state(recipe, shape, mesh), make_train_step(recipe, mesh)
    batches, trail = inputs.TrainBatches(source, loading_of(config), mesh, 0), []
    for _ in range(steps):
        state, metrics = step(state, next(batches))
        trail.append(float(metrics['loss']) / batch)
    return trail


@pytest.mark.parametrize(
    'name', split(['mnist_lenet5:1998', 'cifar10_resnet:20'], ['mnist_lenet5:1998'])
)
def test_the_loss_falls_on_real_images(name):
    config = load(name)
    grey = name.startswith('mnist')
    config.preprocess.train = 'resize(32)' if grey else 'resize(32)|rgb'
    config.data = ConfigDict({'source': 'digits'})
    config.training.batch_size = 32
    config = config_lib.resolve(config)
    trail = falls(config, data.load(config.data, 'train'), 60, (32, 32, 1 if grey else 3))
    assert np.mean(trail[-10:]) < 0.95 * np.mean(trail[:10])


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of 48 crops of three photographs; each photograph is a class."""
    import skimage.data
    from PIL import Image
    from sklearn.datasets import load_sample_images

    root, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    flower = load_sample_images().images[1]
    named = {'flower': flower, 'coffee': skimage.data.coffee(), 'cat': skimage.data.chelsea()}
    for label, image in named.items():
        (root / label).mkdir()
        for i in range(16):
            y, x = (rng.integers(size - 160) for size in image.shape[:2])
            crop = Image.fromarray(image[y : y + 160, x : x + 160])
            crop.save(root / label / f'{i:02}.jpg', quality=90)
    return root


# The input size, the batch size that the learning rate is meant for (None: any), and the number of
# steps. (AlexNet accepts 67 pixels, but its initial weights of .01 stay at chance for longer.)
PHOTO_RECIPES = {
    'imagenet_alexnet': (131, 128, 200),
    'imagenet_vgg:11': (32, 256, 40),
    'imagenet_googlenet': (79, 256, 40),
    'imagenet_inception_v3': (299, None, 40),
    'imagenet_resnet:18': (32, 256, 40),
    'imagenet_resnet:50-v1': (32, 256, 40),
    'imagenet_resnet:50-v2': (96, 1024, 140),
    # Adam and LAMB take steps whose size does not grow with the batch.
    'imagenet_resnet_strikes_back:a3': (64, None, 100),
    'imagenet_vit:90': (64, None, 100),
    'imagenet_deit3:400': (64, None, 100),
    'imagenet_convnext': (64, None, 100),
    'cifar_wide_resnet:10': (32, 128, 40),
    'imagenet_efficientnet': (64, 4096, 100),
}


@pytest.mark.nightly  # minutes, mostly of compilation
@pytest.mark.parametrize('name', PHOTO_RECIPES)
def test_the_loss_of_a_recipe_for_photos_falls(name, photos):
    config, (size, batch, steps) = load(name), PHOTO_RECIPES[name]
    config.preprocess.train += f'|resize({size})'
    config.data = ConfigDict({'source': 'folder', 'path': str(photos), 'max_corrupt': 0.0})
    if config.training.polyak_from:
        config.training.polyak_from = '20 steps'
    config.training.batch_size, config.optimizer.lr_for_batch = 16, batch
    if name in ('imagenet_vit:90', 'imagenet_convnext'):  # as long as the whole run here
        config.schedule.warmup = '20 steps'
    config = config_lib.resolve(config)
    trail = falls(config, data.load(config.data, 'train'), steps, (size, size, 3))
    print(name, np.round(trail, 3).tolist())
    fifth = steps // 5
    assert np.mean(trail[-fifth:]) < 0.95 * np.mean(trail[:fifth])
    # The loss also falls below chance. Inception-v3 would need too many steps for that: its
    # classifier starts with weights of .1 behind dropout.
    if name != 'imagenet_inception_v3':
        chance = np.log(3)
        if config.loss.name == 'sigmoid_cross_entropy':  # the mean over three classes
            chance = np.log(3) - np.log(2) * 2 / 3
        assert np.mean(trail[-fifth:]) < 0.95 * chance
