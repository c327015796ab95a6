"""Conversion of EfficientNet's tensor names in torchvision, timm and efficientnet_lite_pytorch."""

import re
from collections import defaultdict

# The layers of a block in the order of computation. A block without expansion lacks the first two.
_LAYERS = ('expand_conv', 'expand_bn', 'depthwise_conv', 'depthwise_bn', 'se_reduce', 'se_expand', 'project_conv',
           'project_bn')  # fmt: skip
_SE = ('se.conv_reduce', 'se.conv_expand')
# By library:
# - the pattern of a block's tensors: stage, block, layer, leaf. efficientnet_lite_pytorch numbers
#   its blocks through all stages, so its stage is empty;
# - the library's names of `_LAYERS`;
# - its names of `_LAYERS` in a block without expansion. torchvision and timm number a block's
#   layers, so that the same name means another layer in such a block.
_BLOCKS = {
    'torchvision': (
        re.compile(r'features\.(\d)\.(\d+)\.block\.(.+)\.(\w+)$'),
        ('0.0', '0.1', '1.0', '1.1', '2.fc1', '2.fc2', '3.0', '3.1'),
        ('', '', '0.0', '0.1', '1.fc1', '1.fc2', '2.0', '2.1'),
    ),
    'timm': (
        re.compile(r'blocks\.(\d)\.(\d+)\.(.+)\.(\w+)$'),
        ('conv_pw', 'bn1', 'conv_dw', 'bn2', *_SE, 'conv_pwl', 'bn3'),
        ('', '', 'conv_dw', 'bn1', *_SE, 'conv_pw', 'bn2'),
    ),
    'efficientnet_lite_pytorch': (
        re.compile(r'_blocks()\.(\d+)\._(.+)\.(\w+)$'),
        ('expand_conv', 'bn0', 'depthwise_conv', 'bn1', 'se_reduce', 'se_expand', 'project_conv', 'bn2'),
        ('', '', 'depthwise_conv', 'bn1', 'se_reduce', 'se_expand', 'project_conv', 'bn2'),
    ),
}  # fmt: skip
# `_FIRST` has a tensor that only the files of one library have. `_OTHERS` has each library's names
# of the layers outside of blocks.
_FIRST = {
    'features.1.0.block.0.0.weight': 'torchvision',
    'conv_stem.weight': 'timm',
    '_conv_stem.weight': 'efficientnet_lite_pytorch',
}
_OTHERS = {
    'torchvision': ('features.0.0', 'features.0.1', 'features.8.0', 'features.8.1', 'classifier.1'),
    'timm': ('conv_stem', 'bn1', 'conv_head', 'bn2', 'classifier'),
    'efficientnet_lite_pytorch': ('_conv_stem', '_bn0', '_conv_head', '_bn1', '_fc'),
}
_OUR_OTHERS = ('stem_conv', 'stem_bn', 'top_conv', 'top_bn', 'classifier')


def normalise(state: dict) -> dict:
    """Renames the tensors of an EfficientNet to our names; returns other state dicts unchanged."""
    library = next((_FIRST[key] for key in _FIRST if key in state), None)
    if library is None:
        return state
    pattern, names, without_expansion = _BLOCKS[library]
    others = dict(zip(_OTHERS[library], _OUR_OTHERS, strict=True))

    # We number the blocks through all stages: list all blocks, and the layers of each.
    layers = defaultdict(set)
    for match in filter(None, map(pattern.match, state)):
        layers[match[1], int(match[2])].add(match[3])
    rank = {block: i for i, block in enumerate(sorted(layers))}

    def rename(key: str) -> str:
        match = pattern.match(key)
        if match is None:
            layer, _, leaf = key.rpartition('.')
            return f'{others[layer]}.{leaf}' if layer in others else key
        block = match[1], int(match[2])
        known = names if names[-1] in layers[block] else without_expansion
        if match[3] not in known:
            return key
        return f'block{rank[block]}.{_LAYERS[known.index(match[3])]}.{match[4]}'

    return {rename(key): value for key, value in state.items()}
