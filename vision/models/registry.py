"""Registry of the models by name. A new model needs one file and one line in `MODELS`.

A user-defined model, 'package.module:Class', needs no entry. A model's file is imported on demand.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from vision.core.config_keys import check_arguments, find
from vision.core.errors import UserError, unknown

if TYPE_CHECKING:
    import flax.linen as nn


class Entry:
    """A model of the registry: the path of its class, imported on demand, and arguments."""

    def __init__(self, path: str, **arguments: Any):
        """Takes 'file:Class' in this folder, and the arguments of the variant."""
        self._path, self._arguments = path, arguments

    def load(self) -> 'Callable[..., nn.Module]':
        """Returns the class, with its arguments bound."""
        module, _, name = self._path.partition(':')
        cls = getattr(importlib.import_module(f'vision.models.{module}'), name)
        return partial(cls, **self._arguments) if self._arguments else cls


_SHALLOW: dict[str, Any] = {'block': 'basic', 'stage_sizes': (3, 4, 6, 3)}
_WIDE: dict[str, Any] = {'bottleneck': False, 'stem_width': 16}
_ORIGINAL: dict[str, Any] = {'stride_in': '1x1', 'zero_init_residual': False}
_DEEP = (3, 3, 27, 3)
_EFFICIENT = 'efficientnet:EfficientNet'
_SCALE_2: dict[str, Any] = {'width': 1.1, 'depth': 1.2, 'dropout': 0.3}
_SCALE_3: dict[str, Any] = {'width': 1.2, 'depth': 1.4, 'dropout': 0.3}
_SCALE_4: dict[str, Any] = {'width': 1.4, 'depth': 1.8, 'dropout': 0.4}
_VIT = 'vit:VisionTransformer'
_TI: dict[str, Any] = {'width': 192, 'heads': 3}
_S: dict[str, Any] = {'width': 384, 'heads': 6}
_B: dict[str, Any] = {'width': 768, 'heads': 12}
_L: dict[str, Any] = {'width': 1024, 'depth': 24, 'heads': 16}
_DEIT3: dict[str, Any] = {'class_position': False, 'layer_scale': 1e-4, 'weight_init': 'deit'}
_DINOV2: dict[str, Any] = {
    'patch': 14, 'layer_scale': 1e-5, 'weight_init': 'torch', 'resize': 'dinov2', 'resolution': 518,
}  # fmt: skip
_REGISTERS: dict[str, Any] = {**_DINOV2, 'registers': 4, 'class_position': False, 'resize': 'timm'}
_CLIP: dict[str, Any] = {
    'pre_norm': True, 'epsilon': 1e-5, 'activation': 'quick_gelu', 'weight_init': 'torch',
}  # fmt: skip

MODELS: dict[str, Entry] = {
    'lenet5_1998': Entry('lenet_1998:LeNet5Original'),
    'lenet5': Entry('lenet:LeNet5'),
    'alexnet_2012': Entry('alexnet:AlexNet2012'),
    'alexnet': Entry('alexnet:AlexNet'),
    # Columns of table 1, with dense evaluation as in the paper.
    'vgg_a': Entry('vgg:VGG', configuration='A', weight_init='glorot', dense_evaluation=True),
    'vgg_a_lrn': Entry(
        'vgg:VGG', configuration='A', lrn=True, weight_init='glorot', dense_evaluation=True
    ),
    'vgg_b': Entry('vgg:VGG', configuration='B', weight_init='glorot', dense_evaluation=True),
    'vgg_c': Entry('vgg:VGG', configuration='C', weight_init='glorot', dense_evaluation=True),
    'vgg_d': Entry('vgg:VGG', configuration='D', weight_init='glorot', dense_evaluation=True),
    'vgg_e': Entry('vgg:VGG', configuration='E', weight_init='glorot', dense_evaluation=True),
    'vgg11': Entry('vgg:VGG', configuration='A'),
    'vgg13': Entry('vgg:VGG', configuration='B'),
    'vgg16': Entry('vgg:VGG', configuration='D'),
    'vgg19': Entry('vgg:VGG', configuration='E'),
    'vgg11_bn': Entry('vgg:VGG', configuration='A', batch_norm=True),
    'vgg13_bn': Entry('vgg:VGG', configuration='B', batch_norm=True),
    'vgg16_bn': Entry('vgg:VGG', configuration='D', batch_norm=True),
    'vgg19_bn': Entry('vgg:VGG', configuration='E', batch_norm=True),
    'googlenet_2014': Entry('googlenet:GoogLeNet', original=True, dropout=0.4),
    'googlenet': Entry('googlenet:GoogLeNet'),
    'inception_v3': Entry('inception:InceptionV3'),
    # As in the paper: shortcut options A to C, and bottlenecks with the stride in the 1x1
    # convolution.
    'resnet34_a': Entry('resnet:ResNet', shortcut='A', zero_init_residual=False, **_SHALLOW),
    'resnet34_b': Entry('resnet:ResNet', shortcut='B', zero_init_residual=False, **_SHALLOW),
    'resnet34_c': Entry('resnet:ResNet', shortcut='C', zero_init_residual=False, **_SHALLOW),
    'resnet50_v1': Entry('resnet:ResNet', stage_sizes=(3, 4, 6, 3), **_ORIGINAL),
    'resnet101_v1': Entry('resnet:ResNet', stage_sizes=(3, 4, 23, 3), **_ORIGINAL),
    'resnet152_v1': Entry('resnet:ResNet', stage_sizes=(3, 8, 36, 3), **_ORIGINAL),
    'resnet18': Entry('resnet:ResNet', block='basic', stage_sizes=(2, 2, 2, 2)),
    'resnet34': Entry('resnet:ResNet', **_SHALLOW),
    'resnet50': Entry('resnet:ResNet', stage_sizes=(3, 4, 6, 3)),
    'resnet101': Entry('resnet:ResNet', stage_sizes=(3, 4, 23, 3)),
    'resnet152': Entry('resnet:ResNet', stage_sizes=(3, 8, 36, 3)),
    'wide_resnet50_2': Entry('resnet:ResNet', stage_sizes=(3, 4, 6, 3), base_width=128),
    'resnext50_32x4d': Entry('resnet:ResNet', stage_sizes=(3, 4, 6, 3), groups=32, base_width=4),
    'seresnet50': Entry('resnet:ResNet', stage_sizes=(3, 4, 6, 3), squeeze_excite=True),
    'resnet50d': Entry('resnet:ResNet', stage_sizes=(3, 4, 6, 3), stem='deep', shortcut='D'),
    'sscd_resnet50': Entry(
        'resnet:ResNet', stage_sizes=(3, 4, 6, 3), pooling_power=3.0, embedding=512
    ),
    # CIFAR-10: 6n + 2 layers.
    'resnet20': Entry('resnet:CifarResNet', stage_sizes=(3,) * 3),
    'resnet32': Entry('resnet:CifarResNet', stage_sizes=(5,) * 3),
    'resnet44': Entry('resnet:CifarResNet', stage_sizes=(7,) * 3),
    'resnet56': Entry('resnet:CifarResNet', stage_sizes=(9,) * 3),
    'resnet110': Entry('resnet:CifarResNet', stage_sizes=(18,) * 3),
    'resnet1202': Entry('resnet:CifarResNet', stage_sizes=(200,) * 3),
    # Pre-activation.
    'resnet50_v2': Entry('resnet_v2:ResNetV2', stage_sizes=(3, 4, 6, 3)),
    'resnet101_v2': Entry('resnet_v2:ResNetV2', stage_sizes=(3, 4, 23, 3)),
    'resnet152_v2': Entry('resnet_v2:ResNetV2', stage_sizes=(3, 8, 36, 3)),
    'resnet110_v2': Entry('resnet_v2:CifarResNetV2', bottleneck=False, shortcut='A'),
    'resnet164_v2': Entry('resnet_v2:CifarResNetV2'),
    'resnet1001_v2': Entry('resnet_v2:CifarResNetV2', stage_sizes=(111,) * 3),
    # Wide ResNet for CIFAR: 6n + 4 layers, widths times 10 and 4.
    'wide_resnet28_10': Entry(
        'resnet_v2:CifarResNetV2', stage_sizes=(4,) * 3, widths=(160, 320, 640), **_WIDE
    ),
    'wide_resnet40_4': Entry(
        'resnet_v2:CifarResNetV2', stage_sizes=(6,) * 3, widths=(64, 128, 256), **_WIDE
    ),
    # Width, depth and resolution of the authors' code; B0 to B4 with torchvision's padding and ε.
    'efficientnet_b0': Entry(_EFFICIENT, framework='torch'),
    'efficientnet_b1': Entry(_EFFICIENT, depth=1.1, resolution=240, framework='torch'),
    'efficientnet_b2': Entry(_EFFICIENT, **_SCALE_2, resolution=260, framework='torch'),
    'efficientnet_b3': Entry(_EFFICIENT, **_SCALE_3, resolution=300, framework='torch'),
    'efficientnet_b4': Entry(_EFFICIENT, **_SCALE_4, resolution=380, framework='torch'),
    'efficientnet_lite0': Entry(_EFFICIENT, lite=True),
    'efficientnet_lite1': Entry(_EFFICIENT, depth=1.1, resolution=240, lite=True),
    'efficientnet_lite2': Entry(_EFFICIENT, **_SCALE_2, resolution=260, lite=True),
    'efficientnet_lite3': Entry(_EFFICIENT, **_SCALE_3, resolution=280, lite=True),
    'efficientnet_lite4': Entry(
        _EFFICIENT, **{**_SCALE_4, 'dropout': 0.3}, resolution=300, lite=True
    ),
    # Section 3, with the stochastic depth of table 5.
    'convnext_tiny': Entry('convnext:ConvNeXt'),
    'convnext_small': Entry('convnext:ConvNeXt', stage_sizes=_DEEP, drop_path=0.4),
    'convnext_base': Entry(
        'convnext:ConvNeXt', stage_sizes=_DEEP, widths=(128, 256, 512, 1024), drop_path=0.5
    ),
    'convnext_large': Entry(
        'convnext:ConvNeXt', stage_sizes=_DEEP, widths=(192, 384, 768, 1536), drop_path=0.5
    ),
    # ViT as in torchvision if it has the model, else as in timm. LayerScale starts as in the
    # papers.
    'vit_ti16': Entry(_VIT, **_TI),
    'vit_s16': Entry(_VIT, **_S),
    'vit_b16': Entry(_VIT, **_B, resize='torchvision'),
    'vit_b32': Entry(_VIT, **_B, patch=32, resize='torchvision'),
    'vit_l16': Entry(_VIT, **_L, resize='torchvision'),
    'deit3_s16': Entry(_VIT, **_S, **_DEIT3),
    'deit3_b16': Entry(_VIT, **_B, **_DEIT3),
    'dinov2_s14': Entry(_VIT, **_S, **_DINOV2),
    'dinov2_b14': Entry(_VIT, **_B, **_DINOV2),
    'dinov2_l14': Entry(_VIT, **_L, **_DINOV2),
    'dinov2_s14_reg': Entry(_VIT, **_S, **_REGISTERS),
    'dinov2_b14_reg': Entry(_VIT, **_B, **_REGISTERS),
    'dinov2_l14_reg': Entry(_VIT, **_L, **_REGISTERS),
    'clip_b16': Entry(_VIT, **_B, **_CLIP),
    'clip_b32': Entry(_VIT, **_B, **_CLIP, patch=32),
    'siglip_b16': Entry(_VIT, **_B, pool='map'),
}


def create_model(
    name: str, num_classes: int = 1000, dtype: Any = 'float32', **kwargs: Any
) -> 'nn.Module':
    """Returns the model called `name`, unbound, without parameters.

    Args:
      name: a key of `MODELS`, or 'package.module:Class' for a user-defined model. This is a linen
        module (or a function that returns one) with fields `num_classes` and `dtype`, whose
        `__call__(images, train)` returns (logits float32 [B, K], endpoints), or an NNX module with
        such a call, whose constructor takes `num_classes`, `rngs` and optionally `dtype`.
      num_classes: the number of logits.
      dtype: type of the computation, float32 or bfloat16 (or its name); parameters are float32.
      **kwargs: other arguments of the model, its dataclass fields.

    Raises:
      UserError: an unknown name or argument, or an invalid value.
    """
    import flax.linen as nn

    # Check the arguments before the model is built.
    factory: Any = find_model(name)
    arguments = {'num_classes': num_classes, 'dtype': _read_dtype(dtype), **kwargs}
    if _is_nnx(factory):
        from vision.models.bridge import from_nnx

        _check_nnx_arguments(name, factory, arguments)
        return from_nnx(factory, arguments)
    _check_arguments(name, factory, arguments, ('num_classes', 'dtype'))
    model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise UserError(f'model {name!r} must be a Flax module, not {type(model).__name__}')
    return model


def find_model(name: str) -> 'Callable[..., nn.Module]':
    """Returns the class or function called `name`, a key of `MODELS` or 'package.module:Class'."""
    if name in MODELS:
        return MODELS[name].load()
    # A name without a module must be in the registry.
    if ':' not in str(name):
        raise unknown('model', name, MODELS)
    return find('model', name, {})


def _read_dtype(dtype: Any) -> Any:
    """Converts `dtype` to a NumPy dtype; raises UserError for unsupported ones."""
    import jax.numpy as jnp

    if dtype is None:  # NumPy would read None as float64
        raise UserError('dtype None is not a number type: use float32 or bfloat16')
    try:
        read = jnp.dtype(dtype)
    except TypeError as e:
        raise UserError(f'dtype {dtype!r} is not a number type: use float32 or bfloat16') from e
    if read.name not in ('float32', 'bfloat16', 'float16'):  # JAX would turn float64 to float32
        raise UserError(f'dtype {read} is not supported: use float32 or bfloat16')
    return read


def _is_nnx(factory: Any) -> bool:
    """Returns True for a class of NNX modules."""
    nnx = sys.modules.get('flax.nnx')  # a module that defines such a class has imported it
    return nnx is not None and inspect.isclass(factory) and issubclass(factory, nnx.Module)


def _check_nnx_arguments(name: str, factory: Any, arguments: dict[str, Any]) -> None:
    """Checks the arguments of an NNX class; removes `dtype` if the class does not take it.

    Raises:
      UserError: as in `_check_arguments`; or a type other than float32 for a class without `dtype`.
    """
    # The metaclass hides the constructor's signature.
    constructor = partial(factory.__init__, None)
    parameters = inspect.signature(constructor).parameters
    if 'dtype' not in parameters and arguments.pop('dtype') != 'float32':
        raise UserError(f'model {name!r} takes no dtype, so it computes in float32 only')
    _check_arguments(name, constructor, arguments, ('num_classes', 'rngs'))


def _check_arguments(
    name: str, factory: Callable, arguments: dict[str, Any], required: tuple[str, ...]
) -> None:
    """Raises UserError for an unknown or missing argument or an invalid number of classes.

    Args:
      name: the model's name.
      factory: its class or function.
      arguments: the arguments of the call.
      required: the names of parameters that it must have.
    """
    signature = inspect.signature(factory)
    parameters = dict(signature.parameters)
    known = [key for key in parameters if key not in ('parent', 'name', 'rngs')]
    # A function with **kwargs takes any argument.
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known += arguments
    if not set(required) <= {*known, *parameters}:
        raise UserError(f'model {name!r} must take {" and ".join(required)}, like all models')
    check_arguments(f'model {name!r}', factory, known, arguments)
    if isinstance(arguments['num_classes'], int) and arguments['num_classes'] < 1:
        raise UserError(f'model {name!r}: num_classes={arguments["num_classes"]} must be 1 or more')
    # An argument without a default must be given, except the random keys of NNX.
    try:
        signature.bind(**arguments, **{key: None for key in ('rngs',) if key in required})
    except TypeError as e:
        raise UserError(f'model {name!r}: {e}; set it in config.model') from e
