"""Shared helpers of the model tests."""

from functools import cache

from vision.models.base import abstract_variables
from vision.models.summary import default_model

# Models that take ten seconds to trace and minutes to compile. Only their counts and shapes are
# tested, and their blocks at other depths.
DEEP = ('resnet1202', 'resnet1001_v2')
# One of each family and kind of block.
FAMILIES = ('lenet5', 'lenet5_1998', 'alexnet_2012', 'vgg_a', 'vgg11_bn', 'googlenet', 'resnet20', 'resnet50',
            'resnet50_v2', 'resnext50_32x4d', 'efficientnet_b0', 'convnext_tiny', 'vit_s16')  # fmt: skip


@cache
def shapes_of(name):
    """Returns the shapes of the variables of the paper's model, traced once for all tests."""
    return abstract_variables(*default_model(name))
