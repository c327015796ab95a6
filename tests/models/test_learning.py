"""Every model fits 64 images, every parameter has a gradient, and evaluation changes nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.golden.generator import images
from tests.models.common import NARROW
from tests.tiers import quick
from vision.models import MODELS, create_model, resnet_v2
from vision.models.summary import default_model
from vision.task.losses import lenet_discriminative, lenet_mse

# Models of the quick and of the slow tests; all others are nightly.
QUICK = ('lenet5_1998-eq9', 'lenet5-cross_entropy', 'resnet20-cross_entropy')
SLOW = (
    'lenet5_1998',
    'alexnet',
    'vgg_a',
    'vgg11_bn',
    'resnet18',
    'efficientnet_lite0',
    'convnext_tiny',
    'vit_s16',
)
TRANSFORMERS = ('vit', 'deit3', 'dinov2', 'clip', 'siglip')
CLASSES = 4
MAX_STEPS = 100
# Its 333 blocks would compile for many minutes as one program. Each kind of block compiles alone.
BY_BLOCKS = ('resnet1001_v2',)


def setting(name):
    """Returns the model's arguments, the image's size and channels, and the learning rate."""
    if name.startswith('lenet'):
        return {}, 32, 1, 3e-3
    if name.startswith('alexnet'):
        return {'stem': 'small', 'hidden': 128, 'dropout': 0.0}, 16, 3, 1e-3
    if name.startswith('vgg'):
        return {'stem': 'small'}, 8, 3, 3e-4
    if name == 'googlenet_2014':  # its auxiliary heads need 10 px
        return {'stem': 'small', 'dropout': 0.0, 'aux_dropout': 0.0}, 10, 3, 3e-4
    if name == 'googlenet':
        return {'dropout': 0.0, 'aux_dropout': 0.0}, 32, 3, 1e-3
    if name == 'inception_v3':  # the gradients of its auxiliary head are compared with torch's
        return {'dropout': 0.0, 'aux_heads': False}, 75, 3, 1e-3
    if name.startswith(
        'efficientnet'
    ):  # TensorFlow's statistics follow the batch's too slowly for so few steps
        return (
            {'stem': 'small', 'dropout': 0.0, 'drop_path': 0.0, 'framework': 'torch'},
            32,
            3,
            1e-3,
        )
    if name.startswith('convnext'):
        return {'stem': 'small', 'drop_path': 0.0}, 8, 3, 1e-3
    if name.startswith(TRANSFORMERS):
        arguments = {'patch': 4, 'width': 64, 'depth': 4, 'heads': 2}
        # A factor of 1e-5 needs more steps than these to let an image through.
        if default_model(name)[0].layer_scale:
            arguments['layer_scale'] = 0.1
        return arguments, 16, 3, 1e-3
    arguments = {'stage_sizes': (1, 1, 1)} if quick() and name == 'resnet20' else {}
    return arguments, 32 if default_model(name)[1][0] > 32 else 8, 3, 1e-3


def losses(name):
    if name == 'lenet5_1998':
        return {'eq8': (lenet_mse, 15.0), 'eq9': (lenet_discriminative, 15.0)}
    return {'cross_entropy': (optax.softmax_cross_entropy, 0.2)}


def mark_of(name, loss):
    if f'{name}-{loss}' in QUICK:
        return ()
    return pytest.mark.slow if name in SLOW else pytest.mark.nightly


CASES = [
    pytest.param(name, loss, {}, id=f'{name}-{loss}', marks=mark_of(name, loss))
    for name in MODELS
    if name != 'resnet1202'  # counts and shapes only
    for loss in losses(name)
]
# Families of which no member is narrow enough for the slow tests as it was published.
CASES += [
    pytest.param(name, 'cross_entropy', NARROW[name], id=f'{name}-narrow', marks=pytest.mark.slow)
    for name in ('seresnet50', 'resnet50d', 'wide_resnet40_4', 'sscd_resnet50')
]


@pytest.mark.parametrize('name, loss, narrow', CASES)
def test_fits_64_images_and_reaches_every_parameter(name, loss, narrow, monkeypatch):
    jit = compiled
    if name in BY_BLOCKS:
        block = nn.jit(resnet_v2.PreActivationBlock, static_argnums=(2,))
        monkeypatch.setattr(resnet_v2, 'PreActivationBlock', block)
        jit = run_as_it_is
    arguments, size, channels, rate = setting(name)
    if narrow:
        arguments, rate = narrow, 1e-2
    loss_of, bound = losses(name)[loss]
    classes = 10 if name == 'lenet5_1998' else CLASSES
    model = create_model(name, num_classes=classes, **arguments)
    x = images(size, 64)[..., :channels]
    labels = np.arange(64) % CLASSES
    gradients, evaluate = make_steps(model, loss_of, jax.nn.one_hot(labels, classes), jit)
    optimizer = optax.adam(rate)

    params, stats = initialise(model, x, jit)
    leaves, tree = jax.tree.flatten(params)
    moments, reached = [optimizer.init(p) for p in leaves], [False] * len(leaves)

    @jax.jit
    def update(param, gradient, moment):
        change, moment = optimizer.update(gradient, moment)
        return param + change, moment, jnp.any(gradient != 0)

    for count in range(1, MAX_STEPS + 1):
        grads, stats = gradients(jax.tree.unflatten(tree, leaves), stats, x)
        updated = map(update, leaves, jax.tree.leaves(grads), moments)
        leaves, moments, found = map(list, zip(*updated, strict=True))
        reached = [a or bool(b) for a, b in zip(reached, found, strict=True)]
        if count % 5 == 0:
            logits, value, after = evaluate(jax.tree.unflatten(tree, leaves), stats, x)
            accuracy = (np.asarray(logits).argmax(-1) == labels).mean()
            if accuracy == 1 and value < bound:
                break
    print(f'{name}: {count} steps, loss {value:.3f}')
    assert accuracy == 1, f'{accuracy} of the images after {count} steps, loss {value}'
    assert value < bound
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert not [path for path, r in zip(paths, reached, strict=True) if not r]
    jax.tree.map(np.testing.assert_array_equal, after, stats)


def initialise(model, x, jit, seed=0):
    """Initialises a model; without norms, each layer's outputs are normalised once.

    Without norms, 8 px images vanish or become equal within a dozen layers. So each kernel and
    bias is scaled by the statistics of the layer's outputs, as batch normalisation would do at step
    0 (Salimans and Kingma 2016, section 3).
    """

    def init(x):
        return model.init(jax.random.key(seed), x, train=True)

    variables = jit(init)(x)
    params, stats = variables['params'], variables.get('batch_stats', {})
    if stats or type(model).__name__.startswith(('LeNet', 'ConvNeXt', 'VisionTransformer')):
        return params, stats
    normalised = {}

    def normalise(next_fun, args, kwargs, context):
        y, module = next_fun(*args, **kwargs), context.module
        if context.method_name != '__call__' or not module.has_variable('params', 'kernel'):
            return y
        kernel, bias = (module.get_variable('params', n) for n in ('kernel', 'bias'))
        axes = tuple(range(y.ndim - 1))
        mean, std = y.mean(axes), y.std(axes)
        normalised[(*module.path, 'kernel')] = kernel / std
        normalised[(*module.path, 'bias')] = (bias - mean) / std
        return (y - mean) / std

    with nn.intercept_methods(normalise):
        model.apply({'params': params}, x, train=True)
    return unflatten_dict(flatten_dict(params) | normalised), stats


def make_steps(model, loss_of, targets, jit):
    def gradients(params, stats, x):
        def objective(params):
            (logits, endpoints), updated = model.apply(
                {'params': params, 'batch_stats': stats},
                x,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(0)},
            )
            total = loss_of(logits, targets).mean()
            for aux in endpoints.get('aux', ()):
                total += 0.3 * loss_of(aux, targets).mean()
            return total, updated.get('batch_stats', {})

        return jax.grad(objective, has_aux=True)(params)

    def evaluate(params, stats, x):
        variables = {'params': params, 'batch_stats': stats}
        (logits, _), after = model.apply(variables, x, train=False, mutable=['batch_stats'])
        return logits, loss_of(logits, targets).mean(), after.get('batch_stats', {})

    return jit(gradients), jit(evaluate)


def compiled(function):
    return jax.jit(function)


def run_as_it_is(function):
    return function
