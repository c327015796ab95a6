"""What the models' tests share."""

from functools import cache

from vision.models.summary import abstract_variables, default_model

# They trace for ten seconds and compile for minutes: their counts and shapes are tested, and their
# blocks at other depths.
DEEP = ('resnet1202', 'resnet1001_v2')


@cache
def shapes_of(name):
    """The shapes of the variables of the model as its paper has it, traced once for all tests."""
    return abstract_variables(*default_model(name))
