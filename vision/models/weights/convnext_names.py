"""Conversion of ConvNeXt's tensor names in torchvision, timm and the authors' files."""

import re
from typing import NamedTuple

# The layers of a block in the order of computation.
_LAYERS = ('depthwise_conv', 'norm', 'fc1', 'fc2')


class _Library(NamedTuple):
    """Names of one library.

    Attributes:
      reduction: pattern of the stem and of the layers before a stage: stage, 0 or 1, leaf.
      block: pattern of a block's tensors: stage, block, rest.
      layers: names of `_LAYERS`.
      scale: name of a block's factor for each channel.
      others: the library's names of the other layers, with our names.
    """

    reduction: re.Pattern
    block: re.Pattern
    layers: tuple[str, ...]
    scale: str
    others: dict[str, str]


# Libraries by the name of a tensor that only their files have.
_LIBRARIES = {
    'features.1.0.layer_scale': _Library(  # torchvision
        re.compile(r'features\.([0246])\.([01])\.(\w+)$'),
        re.compile(r'features\.([1357])\.(\d+)\.(.+)$'),
        ('block.0', 'block.2', 'block.3', 'block.5'),
        'layer_scale',
        {'classifier.0': 'norm', 'classifier.2': 'head'},
    ),
    'stages.0.blocks.0.gamma': _Library(  # timm
        re.compile(r'stages\.(\d)\.downsample\.([01])\.(\w+)$'),
        re.compile(r'stages\.(\d)\.blocks\.(\d+)\.(.+)$'),
        ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2'),
        'gamma',
        {'stem.0': 'stem_conv', 'stem.1': 'stem_norm', 'head.norm': 'norm', 'head.fc': 'head'},
    ),
    'stages.0.0.gamma': _Library(  # the authors
        re.compile(r'downsample_layers\.(\d)\.([01])\.(\w+)$'),
        re.compile(r'stages\.(\d)\.(\d+)\.(.+)$'),
        ('dwconv', 'norm', 'pwconv1', 'pwconv2'),
        'gamma',
        {},
    ),
}


def normalise(state: dict) -> dict:
    """Renames the tensors of a ConvNeXt to our names; returns other state dicts unchanged."""
    marker = next((key for key in _LIBRARIES if key in state), None)
    if marker is None:
        return state
    library = _LIBRARIES[marker]
    # torchvision numbers the stages and the layers between them; the others number only the stages,
    # from 0.
    in_a_row = marker.startswith('features')

    def stage_of(number: str) -> int:
        return (int(number) // 2 if in_a_row else int(number)) + 1

    def rename(key: str) -> str:
        if match := library.reduction.match(key):
            stage, first = stage_of(match[1]), match[2] == '0'
            # The norm is last in the stem, and first in the layers before the other stages.
            kind = 'conv' if first == (stage == 1) else 'norm'
            return f'{"stem" if stage == 1 else f"downsample{stage}"}_{kind}.{match[3]}'
        if match := library.block.match(key):
            layer, _, leaf = match[3].rpartition('.')
            block = f'stage{stage_of(match[1])}_{match[2]}'
            if match[3] == library.scale:
                return f'{block}.layer_scale.gamma'
            if layer in library.layers:
                return f'{block}.{_LAYERS[library.layers.index(layer)]}.{leaf}'
        layer, _, leaf = key.rpartition('.')
        return f'{library.others.get(layer, layer)}.{leaf}'

    return {rename(key): value for key, value in state.items()}
