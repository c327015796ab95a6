"""Names of our parameters in torchvision and timm."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn

from vision.core.errors import UserError
from vision.models.alexnet import AlexNet
from vision.models.convnext import ConvNeXt
from vision.models.efficientnet import EfficientNet
from vision.models.googlenet import GoogLeNet
from vision.models.inception import InceptionV3
from vision.models.positions import Resize
from vision.models.registry import MODELS, create_model
from vision.models.resnet import CifarResNet, ResNet
from vision.models.vgg import CONFIGURATIONS, VGG
from vision.models.vit import VisionTransformer
from vision.models.weights import convnext_names, efficientnet_names, vit_names

Path = tuple[str, ...]

# Models that torchvision has under the same name. No two of them have the same tensors. Variants in
# the registry have the tensors of one of these: vgg_a those of vgg11, resnet50_v1 of resnet50.
TORCHVISION_MODELS = (
    'alexnet',
    *(f'vgg{depth}{norm}' for depth in (11, 13, 16, 19) for norm in ('', '_bn')),
    'googlenet',
    'inception_v3',
    *(f'resnet{depth}' for depth in (18, 34, 50, 101, 152)),
    'wide_resnet50_2',
    'resnext50_32x4d',
    *(f'efficientnet_b{i}' for i in range(5)),
    *(f'convnext_{size}' for size in ('tiny', 'small', 'base', 'large')),
)
# Vision Transformers, whose names differ in torchvision (vit_b_16).
VISION_TRANSFORMERS = (
    *('vit_ti16', 'vit_s16', 'vit_b16', 'vit_b32', 'vit_l16', 'deit3_s16', 'deit3_b16'),
    *(f'dinov2_{size}14{registers}' for size in 'sbl' for registers in ('', '_reg')),
    *('clip_b16', 'clip_b32', 'siglip_b16'),
)
# The models of torchvision, and further ones of timm.
TORCH_MODELS = (
    *TORCHVISION_MODELS,
    *(f'efficientnet_lite{i}' for i in range(5)),
    'seresnet50',
    'resnet50d',
    *VISION_TRANSFORMERS,
)

_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
    'gamma': 'gamma',
}
# timm's VGG has its fully connected layers as convolutions with other names.
_TIMM = {
    'pre_logits.fc1.': 'classifier.0.',
    'pre_logits.fc2.': 'classifier.3.',
    'head.fc.': 'classifier.6.',
}


@dataclass(frozen=True)
class TorchNames:
    """Names and layouts of one architecture's parameters in torch.

    Attributes:
      layer: maps the path of a module, below the model, to its name in torch.
      windows: side of the map that a fully connected layer flattens, by path (1 if absent);
        torch flattens channels first.
      resize: method of resizing position embeddings to the model's grid; None if there are none.
    """

    layer: Callable[[Path], str]
    windows: dict[Path, int] = field(default_factory=dict)
    resize: Resize | None = None

    def key(self, path: Path) -> str:
        """Returns torch's name of a variable, given its path including the collection."""
        leaf = _LEAVES.get(path[-1], path[-1])
        return f'{self.layer(path[1:-1])}.{leaf}' if path[1:-1] else leaf


def torch_names(name: str, **arguments: Any) -> TorchNames:
    """Returns the torch names for the model called `name`, made with `arguments`.

    Raises:
      UserError: neither torchvision nor timm has such a model.
    """
    names = _names_of(create_model(name, num_classes=10, **arguments))
    if names is None:
        known = [key for key in MODELS if _names_of(create_model(key, num_classes=10))]
        raise UserError(
            f'there are no torchvision or timm weights for model {name!r}, only for: '
            + ', '.join(sorted(known))
        )
    return names


def _names_of(model: nn.Module) -> TorchNames | None:
    """Returns the torch names for a model; None if torch has no such model."""
    if isinstance(model, VGG) and model.stem == 'imagenet':
        return TorchNames(_table(_vgg_layers(model)), {('fc6',): 7})
    if isinstance(model, AlexNet):
        return TorchNames(_table(_ALEXNET), {('fc6',): 6})
    if isinstance(model, GoogLeNet) and not model.original:
        return TorchNames(_indexed, {('aux1', 'fc1'): 4, ('aux2', 'fc1'): 4})
    if isinstance(model, InceptionV3):
        return TorchNames('.'.join)
    if isinstance(model, ResNet) and not isinstance(model, CifarResNet):
        return TorchNames(partial(_resnet_layer, model))
    if isinstance(model, EfficientNet | ConvNeXt) and model.stem == 'imagenet':
        return TorchNames('.'.join)
    if isinstance(model, VisionTransformer):
        return TorchNames(vit_names.layer, resize=model.resize)
    return None


def normalise_keys(state: dict) -> dict:
    """Replaces timm's names in a state dict by torchvision's, and removes a common prefix.

    Wrappers add a prefix: `module.` (DataParallel), `_orig_mod.` (compile), or a LightningModule's
    attribute.
    """
    shared = os.path.commonprefix([key for key in state if '.' in key])  # noqa: RUF071 - of letters
    # Cut the common prefix at its last dot.
    shared = shared[: shared.rfind('.') + 1]

    state = {key.removeprefix(shared): value for key, value in state.items()}
    if 'embeddings.1.weight' in state:  # SSCD's network with its own backbone
        state = {_sscd_key(key): value for key, value in state.items()}
    state = convnext_names.normalise(state)

    def rename(key: str) -> str:
        for timm_name, name in _TIMM.items():
            if key.startswith(timm_name):
                return name + key.removeprefix(timm_name)
        return key

    renamed = {rename(key): value for key, value in state.items()}
    return vit_names.normalise(efficientnet_names.normalise(renamed))


def _sscd_key(key: str) -> str:
    """Returns torchvision's name of a tensor of SSCD's network; the embedding is its last layer."""
    return key.removeprefix('backbone.').replace('embeddings.1.', 'fc.')


_ALEXNET = {
    **{f'conv{i}': f'features.{n}' for i, n in enumerate((0, 3, 6, 8, 10), 1)},
    **{'fc6': 'classifier.1', 'fc7': 'classifier.4', 'fc8': 'classifier.6'},
}


def _vgg_layers(model: VGG) -> dict[str, str]:
    """Returns torchvision's layer names: convolutions, norms, ReLUs and pools are numbered."""
    layers = {'fc6': 'classifier.0', 'fc7': 'classifier.3', 'fc8': 'classifier.6'}
    position = 0
    for stage, widths in enumerate(CONFIGURATIONS[model.configuration].split('|'), 1):
        for i in range(1, len(widths.split()) + 1):
            layers[f'conv{stage}_{i}'] = f'features.{position}'
            layers[f'bn{stage}_{i}'] = f'features.{position + 1}'
            position += 3 if model.batch_norm else 2
        position += 1
    return layers


def _table(layers: dict[str, str]) -> Callable[[Path], str]:
    """Returns a function that looks up the first part of a path."""
    return lambda path: layers[path[0]]


def _indexed(path: Path) -> str:
    """Joins a path, with numbers as indices: branch2_0 becomes branch2.0."""
    return '.'.join(re.sub(r'_(\d+)$', r'.\1', part) for part in path)


def _resnet_layer(model: ResNet, path: Path) -> str:
    """Renames the layers of the shortcuts, of the deep stem and of SSCD's embedding."""
    first = 1 if model.shortcut == 'D' else 0  # after timm's pooling
    names = {
        'shortcut_conv': f'downsample.{first}',
        'shortcut_bn': f'downsample.{first + 1}',
        **{f'stem_conv{i + 1}': f'conv1.{3 * i}' for i in range(3)},
        **{f'stem_bn{i + 1}': f'conv1.{3 * i + 1}' for i in range(2)},
    }
    if model.embedding:  # SSCD's embedding takes the place of the classifier
        names |= {'embedding': 'fc', 'fc': 'classifier'}
    return '.'.join(names.get(part, _indexed((part,))) for part in path)
