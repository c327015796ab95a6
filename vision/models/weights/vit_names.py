"""Names of Vision Transformers and their tensors in torchvision, timm and the authors' files."""

import math
import re
from typing import Any

import numpy as np

# Patterns that rename the tensors of torchvision, DINOv2 and DeiT III to timm's names.
_RENAMED = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r'^class_token$', 'cls_token'),
        (r'^conv_proj\.', 'patch_embed.proj.'),
        (r'^encoder\.pos_embedding$', 'pos_embed'),
        (r'^encoder\.ln\.', 'norm.'),
        (r'^heads\.head\.', 'head.'),
        (r'^encoder\.layers\.encoder_layer_(\d+)\.', r'blocks.\1.'),
        (r'^(blocks\.\d+)\.ln_([12])\.', r'\1.norm\2.'),
        (r'^(blocks\.\d+)\.self_attention\.in_proj_', r'\1.attn.qkv.'),
        (r'^(blocks\.\d+)\.self_attention\.out_proj\.', r'\1.attn.proj.'),
        (r'^(blocks\.\d+)\.mlp\.(?:0|linear_1)\.', r'\1.mlp.fc1.'),
        (r'^(blocks\.\d+)\.mlp\.(?:3|linear_2)\.', r'\1.mlp.fc2.'),
        (r'^blocks\.\d+\.(\d+)\.', r'blocks.\1.'),  # DINOv2 in chunks: the second number counts all
        (r'^(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma'),
    )
]

_SIZES = {'tiny': 'ti', 'small': 's', 'base': 'b', 'large': 'l'}
# Patterns of model names in torchvision, timm and the authors' files, with the beginning and end of
# our names. The groups are the size and, if the name has it, the patch.
_SIZE = '(tiny|small|base|large)'
_MODELS = (
    (rf'(?:vit|deit)_{_SIZE}_patch(16|32)_\d+', 'vit_', ''),
    (r'vit_([bl])_(\d+)', 'vit_', ''),
    (rf'deit3_{_SIZE}_patch(16)_\d+', 'deit3_', ''),
    (rf'deit_3_{_SIZE}_\d+_(?:1k|21k)', 'deit3_', '16'),
    (rf'vit_{_SIZE}_patch(14)_dinov2', 'dinov2_', ''),
    (rf'vit_{_SIZE}_patch(14)_reg4_dinov2', 'dinov2_', '_reg'),
    (r'dinov2_vit([sbl])(14)_pretrain', 'dinov2_', ''),
    (r'dinov2_vit([sbl])(14)_reg4_pretrain', 'dinov2_', '_reg'),
    (rf'vit_{_SIZE}_patch(16|32)_clip_(?:quickgelu_)?\d+', 'clip_', ''),
    (rf'vit_{_SIZE}_patch(16)_siglip_\d+', 'siglip_', ''),
)
# Endings of timm's CLIP weights that were trained with the quick GELU, according to timm's notes.
_QUICK = re.compile(r'quickgelu|\.openai$|\.metaclip_|patch32_clip_224\.laion400m')


def registry_name(name: str) -> str:
    """Returns the name in our registry of a model of another library; other names unchanged."""
    for pattern, before, after in _MODELS:
        if match := re.fullmatch(pattern, name):
            size, *patch = match.groups()
            return ''.join((before, _SIZES.get(size, size), *patch, after))
    return name


def arguments(name: str, source: str) -> dict[str, Any]:
    """Returns the arguments of the model `name` that depend on timm's weights `source`."""
    if name.startswith('clip_'):
        return {'activation': 'quick_gelu' if _QUICK.search(source) else 'gelu'}
    return {'resize': 'timm'} if name.startswith(('vit_', 'dinov2_')) else {}


def layer(path: tuple[str, ...]) -> str:
    """Returns timm's name of a module, given its path below the model."""
    names = ('patch_embed.proj' if part == 'patch_embed' else part for part in path)
    return '.'.join(re.sub(r'^blocks_(\d+)$', r'blocks.\1', name) for name in names)


def normalise(state: dict) -> dict:
    """Renames a Vision Transformer's tensors to timm's names; other state dicts are unchanged.

    `pos_embed` [1, N, D] becomes the grid [h, w, D]. A position of the class token becomes
    `cls_position` [1, 1, D] or, in a model with registers, is added to the class token.
    """
    if not {'pos_embed', 'encoder.pos_embedding'} & set(state):
        return state
    # `mask_token` of DINOv2 is used in training only.
    state = {_rename(key): value for key, value in state.items() if key != 'mask_token'}
    positions = np.asarray(state['pos_embed'])
    if positions.ndim != 3 or not positions.shape[1]:
        return state
    # If the number of positions is a square, the class token has no position.
    extra = int(not _is_square(positions.shape[1]))
    side = math.isqrt(positions.shape[1] - extra)
    if side**2 + extra != positions.shape[1]:
        return state  # not a square grid: the later error for a wrong shape names the tensor
    state['pos_embed'] = positions[0, extra:].reshape(side, side, -1)
    if 'register_tokens' in state:
        state['reg_token'] = state.pop('register_tokens')
        state['cls_token'] = state['cls_token'] + positions[:, :extra].sum(1, keepdims=True)
    elif extra:
        state['cls_position'] = positions[:, :1]
    return state


def _rename(key: str) -> str:
    """Returns timm's name of a tensor."""
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number
