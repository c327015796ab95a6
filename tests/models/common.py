"""Shared helpers of the model tests."""

from functools import cache

import jax

from vision.models import create_model
from vision.models.base import abstract_variables, init_variables
from vision.models.summary import default_model

# Models that take ten seconds to trace and minutes to compile. Only their counts and shapes are
# tested, and their blocks at other depths.
DEEP = ('resnet1202', 'resnet1001_v2')
# One of each family and kind of block.
FAMILIES = ('lenet5', 'lenet5_1998', 'alexnet_2012', 'vgg_a', 'vgg11_bn', 'googlenet', 'resnet20', 'resnet50',
            'resnet50_v2', 'resnext50_32x4d', 'efficientnet_b0', 'convnext_tiny', 'vit_s16')  # fmt: skip

# Narrow forms, for images of 32 px, of the families since Inception-v3.
_RESNET = {'stage_sizes': (1, 1), 'widths': (16, 16)}
NARROW = {
    'vit_s16': {'patch': 8, 'width': 48, 'depth': 2, 'heads': 3},
    'convnext_tiny': {'stem': 'small', 'stage_sizes': (1, 1), 'widths': (16, 32), 'drop_path': 0.0,
                      'layer_scale': 0.5},
    'efficientnet_b0': {'stem': 'small', 'width': 0.25, 'depth': 0.1, 'dropout': 0.0,
                        'drop_path': 0.0},
    'seresnet50': _RESNET,
    'resnet50d': _RESNET,
    'wide_resnet40_4': {'stage_sizes': (1, 1, 1), 'widths': (16, 16, 32)},
    'sscd_resnet50': _RESNET | {'embedding': 8},
}  # fmt: skip


def narrow_model(name, shape, num_classes=10):
    """Returns a narrow model and variables for images of `shape` in which no layer is zero."""
    model = create_model(name, num_classes=num_classes, **NARROW[name])

    @jax.jit
    def draw():
        variables = init_variables(model, shape, jax.random.key(0))
        leaves, tree = jax.tree.flatten(variables['params'])
        keys = jax.random.split(jax.random.key(1), len(leaves))
        noisy = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
        statistics = jax.tree.map(lambda s: s + 0.3, variables['batch_stats'])
        return {'params': jax.tree.unflatten(tree, noisy), 'batch_stats': statistics}

    return model, draw()


@cache
def shapes_of(name):
    """Returns the shapes of the variables of the paper's model, traced once for all tests."""
    return abstract_variables(*default_model(name))
