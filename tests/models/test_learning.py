"""Every model learns: it fits 64 images, every parameter has a gradient, evaluation changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.golden.generator import images
from tests.models.common import DEEP
from vision.models import MODELS, create_model
from vision.models.summary import default_model
from vision.training.lenet_losses import lenet_discriminative, lenet_mse

FAST = ('lenet5_1998', 'lenet5', 'vgg11_bn', 'resnet20')
CLASSES = 4
MAX_STEPS = 150


def setting(name):
    """The model's arguments, the image's size and channels, and the learning rate."""
    if name.startswith('lenet'):
        return {}, 32, 1, 3e-3
    if name.startswith('alexnet'):
        return {'stem': 'small', 'hidden': 128, 'dropout': 0.0}, 16, 3, 1e-3
    if name.startswith('vgg'):
        # Without norms a signal dies where most of each 3x3 window is padding.
        return {'stem': 'small'}, 8 if name == 'vgg11_bn' else 32, 3, 3e-4
    if name == 'googlenet_2014':
        return {'stem': 'small', 'dropout': 0.0, 'aux_dropout': 0.0}, 16, 3, 3e-4
    if name == 'googlenet':
        return {'dropout': 0.0, 'aux_dropout': 0.0}, 32, 3, 1e-3
    if name == 'inception_v3':  # the gradients of its auxiliary head are compared with torch's
        return {'dropout': 0.0, 'aux_heads': False}, 75, 3, 1e-3
    return {}, 32 if default_model(name)[1][0] > 32 else 16, 3, 1e-3


def losses(name):
    if name == 'lenet5_1998':
        return {'eq8': (lenet_mse, 15.0), 'eq9': (lenet_discriminative, 15.0)}
    return {'cross_entropy': (optax.softmax_cross_entropy, 0.2)}


CASES = [
    pytest.param(name, loss, id=f'{name}-{loss}', marks=() if name in FAST else pytest.mark.slow)
    for name in MODELS
    if name not in DEEP
    for loss in losses(name)
]


@pytest.mark.parametrize('name, loss', CASES)
def test_fits_64_images_and_reaches_every_parameter(name, loss):
    arguments, size, channels, rate = setting(name)
    loss_of, bound = losses(name)[loss]
    classes = 10 if name == 'lenet5_1998' else CLASSES
    model = create_model(name, num_classes=classes, **arguments)
    x = images(size, 64)[..., :channels]
    labels = np.arange(64) % CLASSES
    step, evaluate = make_steps(model, loss_of, jax.nn.one_hot(labels, classes), rate)

    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=True))(x)
    params, stats = variables['params'], variables.get('batch_stats', {})
    state = (params, stats, optax.adam(rate).init(params))
    reached = jax.tree.map(lambda p: False, params)
    for count in range(1, MAX_STEPS + 1):
        state, found = step(state, x)
        reached = jax.tree.map(lambda a, b: a or bool(b), reached, found)
        if count % 10 == 0:
            logits, value, after = evaluate(state, x)
            accuracy = (np.asarray(logits).argmax(-1) == labels).mean()
            if accuracy == 1 and value < bound:
                break
    assert accuracy == 1, f'{accuracy} of the images after {count} steps, loss {value}'
    assert value < bound
    dead = [
        jax.tree_util.keystr(p) for p, r in jax.tree_util.tree_leaves_with_path(reached) if not r
    ]
    assert not dead
    jax.tree.map(np.testing.assert_array_equal, after, state[1])


def make_steps(model, loss_of, targets, rate):
    optimizer = optax.adam(rate)

    @jax.jit
    def step(state, x):
        params, stats, moments = state

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

        grads, stats = jax.grad(objective, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments)
        reached = jax.tree.map(lambda g: jnp.any(g != 0), grads)
        return (optax.apply_updates(params, updates), stats, moments), reached

    @jax.jit
    def evaluate(state, x):
        variables = {'params': state[0], 'batch_stats': state[1]}
        (logits, _), after = model.apply(variables, x, train=False, mutable=['batch_stats'])
        return logits, loss_of(logits, targets).mean(), after.get('batch_stats', {})

    return step, evaluate
