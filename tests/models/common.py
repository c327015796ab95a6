"""What the models' tests share."""

from functools import cache

from vision.models.summary import abstract_variables, default_model

# They trace for ten seconds and compile for minutes: their counts and shapes are tested, and their
# blocks at other depths.
DEEP = ('resnet1202', 'resnet1001_v2')
# Where compiling is most of the work, what LLVM adds to it is not worth its time.
COMPILER = {'xla_backend_optimization_level': 1, 'xla_llvm_disable_expensive_passes': True}


@cache
def shapes_of(name):
    """The shapes of the variables of the model as its paper has it, traced once for all tests."""
    return abstract_variables(*default_model(name))
