"""Pretrained weights: conversion of torchvision's and timm's state dicts."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.core.errors import UserError
from vision.models.base import abstract_variables, check_finite, is_auxiliary, is_head
from vision.models.positions import resize_positions
from vision.models.registry import MODELS
from vision.models.summary import default_model
from vision.models.weights import vit_names
from vision.models.weights.state_dicts import StateDict, read_hub_config, read_state_dict
from vision.models.weights.torch_names import TORCH_MODELS, Path, TorchNames, torch_names

IMAGENET_CLASSES: tuple[str, ...] = tuple(
    (resources.files('vision.models.weights') / 'imagenet_classes.txt')
    .read_text('utf-8')
    .splitlines()
)


@dataclass(frozen=True)
class PretrainedInput:
    """Preprocessing for pretrained weights: resize the shorter side, crop the centre, normalise."""

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    method: str = 'bilinear'


_HALF = (0.5,) * 3  # the mean and std that result from torchvision's `transform_input`


def _lite(crop: int) -> PretrainedInput:
    """Returns the preprocessing of EfficientNet-Lite in the authors' code.

    Pixels become (x - 127) / 128, and the crop leaves a margin of 16 px on each side.
    """
    return PretrainedInput(crop + 32, crop, (127 / 255,) * 3, (128 / 255,) * 3, 'bicubic')


# timm's preprocessing of ViTs for which torchvision has no weights.
_BICUBIC = PretrainedInput(248, 224, method='bicubic')
_AUGREG = PretrainedInput(248, 224, _HALF, _HALF, 'bicubic')
_OPENAI_MEAN, _OPENAI_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
_OPENAI = PretrainedInput(224, 224, _OPENAI_MEAN, _OPENAI_STD, 'bicubic')
_DINOV2 = PretrainedInput(518, 518, method='bicubic')

# Names of files from timm whose models differ from torchvision's of the same name.
_TIMM = re.compile(r'(vit|deit)_\w+_patch|tf_efficientnet')

_INPUTS = {
    'inception_v3': PretrainedInput(342, 299, _HALF, _HALF),
    'googlenet': PretrainedInput(256, 224, _HALF, _HALF),
    'efficientnet_b0': PretrainedInput(256, 224, method='bicubic'),
    'efficientnet_b1': PretrainedInput(256, 240, method='bicubic'),
    'efficientnet_b2': PretrainedInput(288, 288, method='bicubic'),
    'efficientnet_b3': PretrainedInput(320, 300, method='bicubic'),
    'efficientnet_b4': PretrainedInput(384, 380, method='bicubic'),
    'convnext_tiny': PretrainedInput(236),
    'convnext_small': PretrainedInput(230),
    'convnext_base': PretrainedInput(232),
    'convnext_large': PretrainedInput(232),
    'sscd_resnet50': PretrainedInput(288, 288),
    **{f'efficientnet_lite{i}': _lite(size) for i, size in enumerate((224, 240, 260, 280, 300))},
    **dict.fromkeys(('vit_ti16', 'vit_s16', 'siglip_b16'), _AUGREG),
    'vit_l16': PretrainedInput(242, 224),
    **dict.fromkeys(('deit3_s16', 'deit3_b16'), _BICUBIC),
    **{f'dinov2_{size}14{end}': _DINOV2 for size in 'sbl' for end in ('', '_reg')},
    **dict.fromkeys(('clip_b16', 'clip_b32'), _OPENAI),
}


def pretrained_input(name: str, source: str = '') -> PretrainedInput:
    """Returns the preprocessing that weights of the model `name` expect.

    The preprocessing is torchvision's, unless the weights come from the hub with timm's
    `config.json`. timm evaluates many models at 288 px with bicubic resizing.
    """
    default = _INPUTS.get(name, PretrainedInput())
    # Files of DeiT and of AugReg have the same model name here, but different preprocessing.
    file = os.path.basename(source)
    if name.startswith('vit_') and (file.startswith('deit_') or 'augreg' in file):
        default = _BICUBIC if file.startswith('deit_') else _AUGREG
    # timm's config overrides the default if it is complete.
    config = read_hub_config(source) if source.startswith('hf:') else {}
    timm = config.get('pretrained_cfg', {})
    try:
        if not {'input_size', 'crop_pct', 'mean', 'std'} <= set(timm):
            return default
        crop = int(timm.get('test_input_size', timm['input_size'])[-1])
        return PretrainedInput(
            resize=math.floor(crop / timm.get('test_crop_pct', timm['crop_pct'])),
            crop=crop,
            mean=tuple(map(float, timm['mean'])),
            std=tuple(map(float, timm['std'])),
            method='bicubic' if timm.get('interpolation') == 'bicubic' else 'bilinear',
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise UserError(f'{source}: its config.json has an invalid input description: {e}') from e


def model_arguments(name: str, source: str) -> dict[str, Any]:
    """Returns the arguments of the model `name` that depend on the weights, by the source's name.

    timm's EfficientNets have TensorFlow's padding and constants if their name starts with 'tf_',
    and torch's otherwise. timm's ViTs resize position embeddings with timm's method, and its CLIP
    models have one of two activations.
    """
    file = os.path.basename(source)
    if not (source.startswith('hf:timm/') or _TIMM.match(file)):
        return {}
    if not name.startswith('efficientnet'):
        return vit_names.arguments(name, source)
    return {'framework': 'tensorflow' if file.startswith('tf_') else 'torch'}


def load_pretrained(
    source: str, name: str, variables: Mapping[str, Any], new_head: bool = True
) -> dict[str, Any]:
    """Returns `variables` filled with a torchvision or timm state dict.

    If the source has another number of classes or no classifier, the classifier keeps its initial
    values, with a warning. So do auxiliary heads that the source does not have. Position embeddings
    are resized to the model's grid.

    Args:
      source: a `.safetensors` or `.pth` file, `hf:organisation/name` on the Hugging Face hub, or
        the name of packaged weights, such as 'efficientnet_lite0'.
      name: name of the model in the registry.
      variables: 'params' and 'batch_stats' of the model, as `init` makes them.
      new_head: whether the classifier may keep its initial values; False for prediction.

    Raises:
      UserError: the source cannot be read, its tensors do not match the model (one error names all
        that are missing, surplus or misshapen), or values are not finite.
    """
    # Match all tensors first, so that one error names every problem.
    names = torch_names(name, **model_arguments(name, source))
    converted, fresh = convert(read_state_dict(source), names, variables, f'{source} ({name})')
    check_finite(converted, source)
    # Report the layers that keep their initial values.
    if not new_head:
        if not all(is_auxiliary((layer,)) for layer in fresh):
            raise UserError(
                f'{source}: it has no classifier, or its classifier has another number of classes '
                'than the model; search with it, fine-tune it (config.init_from), or use other weights'
            )
    elif fresh:
        logging.warning(
            '%s: layers that are missing or have other classes keep their initial values: %s',
            source,
            ', '.join(fresh),
        )
    return converted


def guess_name(source: str) -> str:
    """Guesses the registry's name for a source such as 'hf:timm/resnet50.tv_in1k'.

    The guess is the beginning of the source's name if that is a model of the registry, or a ViT's
    name in torchvision or timm. Otherwise it is the only model of torchvision or timm that matches
    all tensors, for any number of classes.

    Raises:
      UserError: no model can be found.
    """
    name = re.split(r'[.-]', source.removeprefix('hf:').rsplit('/', 1)[-1])[0].removeprefix('tf_')
    name = vit_names.registry_name(name)
    if name in MODELS:
        return name
    starts = [known for known in TORCH_MODELS if name.startswith(f'{known}_')]
    if starts:
        return max(starts, key=len)
    if name.startswith('sscd_'):  # by its tensors, the embedding could be a classifier
        return 'sscd_resnet50'
    # If the name does not identify the model, compare the tensors.
    state = read_state_dict(source)
    for known in TORCH_MODELS:
        if not match(state, torch_names(known), _shapes(known)).problems:
            return known
    raise UserError(
        f'{source}: neither its name nor its tensors match any of '
        f'{", ".join(TORCH_MODELS)}; name the model with --model'
    )


@cache
def _shapes(name: str) -> dict[str, Any]:
    """Returns the shapes of a registry model's variables."""
    return abstract_variables(*default_model(name))


@dataclass(frozen=True)
class Match:
    """Result of matching a state dict with a model.

    Attributes:
      tensors: values in our layout by the path of the variable.
      fresh: layers that the state dict does not have, or has for another number of classes.
      problems: every tensor that is missing, surplus or misshapen; empty if the two match.
    """

    tensors: dict[Path, np.ndarray]
    fresh: list[str]
    problems: list[str]


def match(state: StateDict, names: TorchNames, variables: Mapping[str, Any]) -> Match:
    """Finds the tensor of each variable (or shape of a variable) of a model in a state dict."""
    expected = flatten_dict({k: variables[k] for k in ('params', 'batch_stats') if k in variables})
    absent = _absent_heads(expected, names, state)
    tensors, fresh, problems = {}, set(absent), []
    # Only the classifier may have another number of outputs.
    for path, value in expected.items():
        key = names.key(path)
        if path[1] in absent:
            continue
        if key not in state:
            problems.append(f'missing {key}')
            continue
        tensor = _our_layout(state[key], path, value.ndim, names)
        if path[-1] == 'pos_embed' and names.resize and tensor.shape[2:] == value.shape[2:]:
            tensor = resize_positions(tensor, value.shape[:2], names.resize)
        if not np.issubdtype(tensor.dtype, np.floating):  # e.g. quantised, without its scale
            problems.append(f'{key} of type {tensor.dtype}')
        elif tensor.shape == value.shape:
            tensors[path] = tensor
        elif is_head(path[1:]) and tensor.shape[:-1] == value.shape[:-1]:
            fresh.add('/'.join(path[1:-1]))
        else:
            problems.append(
                f'misshapen {key} {tuple(state[key].shape)} for {"/".join(path[1:])} {value.shape}'
            )
    problems += [f'surplus {key}' for key in _surplus(state, expected, names)]
    # If the kernel of a layer does not fit, its bias keeps the initial value, too.
    whole = {p: t for p, t in tensors.items() if '/'.join(p[1:-1]) not in fresh}
    return Match(whole, sorted(fresh), problems)


def convert(
    state: StateDict, names: TorchNames, variables: Mapping[str, Any], title: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns `variables` filled from a state dict, and the layers that keep their initial values.

    Raises:
      UserError: names every tensor that is missing, surplus or misshapen, after `title`.
    """
    found = match(state, names, variables)
    if found.problems:
        raise UserError(f'{title} does not match the model: {"; ".join(found.problems)}')
    expected = flatten_dict({k: v for k, v in variables.items() if k in ('params', 'batch_stats')})
    # Variables without a tensor keep their initial values.
    filled = {
        path: np.asarray(found.tensors[path], value.dtype) if path in found.tensors else value
        for path, value in expected.items()
    }
    return {**variables, **unflatten_dict(filled)}, found.fresh


def _our_layout(tensor: np.ndarray, path: Path, ndim: int, names: TorchNames) -> np.ndarray:
    """Transposes a torch tensor; torch kernels are [out, in, h, w] and [out, in]."""
    tensor = np.asarray(tensor)
    if path[-1] == 'gamma':  # torchvision's shape is [C, 1, 1]
        return tensor.reshape(-1)
    if path[-1] != 'kernel' or tensor.ndim not in (2, 4):
        return tensor
    if ndim == 2 and tensor.ndim == 2:
        # A fully connected layer after a flattened map: torch flattens channels first.
        window = names.windows.get(path[1:-1], 1)
        if tensor.shape[1] % window**2:
            return tensor.T
        tensor = tensor.reshape(len(tensor), -1, window, window)
    tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
    return tensor.reshape(-1, tensor.shape[-1]) if ndim == 2 else tensor


def _absent_heads(expected: Mapping[Path, Any], names: TorchNames, state: StateDict) -> set[str]:
    """Returns the classifier and auxiliary heads that the state dict does not have at all."""
    there: dict[str, bool] = {}
    for path in expected:
        if is_head(path[1:]):
            there[path[1]] = there.get(path[1], False) or names.key(path) in state
    return {head for head, any_tensor in there.items() if not any_tensor}


def _surplus(state: StateDict, expected: Mapping[Path, Any], names: TorchNames) -> list[str]:
    """Returns the tensors that the model does not have, ignoring auxiliary heads if it has none."""
    used = {names.key(path) for path in expected}
    has_aux = any(is_auxiliary(path[1:]) for path in expected)
    return sorted(
        key
        for key in set(state) - used
        if np.shape(state[key]) not in ((), (1,))  # counters like num_batches_tracked
        and (has_aux or not key.lower().startswith('aux'))
    )
