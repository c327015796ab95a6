"""Pretrained weights: torchvision's and timm's state dicts, turned into our variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.core.errors import UserError, unknown
from vision.models.registry import MODELS
from vision.models.state_dicts import StateDict, read_state_dict
from vision.models.torch_names import Path, TorchNames, torch_names

IMAGENET_CLASSES: tuple[str, ...] = tuple(
    (resources.files('vision.models') / 'imagenet_classes.txt').read_text('utf-8').splitlines()
)

# What our models call the layer that makes the logits.
HEADS = ('fc', 'fc3', 'fc8', 'head', 'classifier')


@dataclass(frozen=True)
class PretrainedInput:
    """What ImageNet weights expect: the shorter side resized, the centre cropped, normalised."""

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def pretrained_input(name: str) -> PretrainedInput:
    """Returns the preprocessing that torchvision's weights of the model `name` expect (bilinear)."""
    half = (0.5, 0.5, 0.5)  # what torchvision's `transform_input` makes of ImageNet's mean and std
    if name == 'inception_v3':
        return PretrainedInput(342, 299, half, half)
    if name == 'googlenet':
        return PretrainedInput(256, 224, half, half)
    return PretrainedInput()


def load_pretrained(source: str, name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `variables` with the values of a torchvision or timm state dict.

    A classifier of another number of classes keeps the values it has, and a warning says so; the
    same holds for auxiliary heads that the source does not have.

    Args:
      source: a `.safetensors` file, a `.pth` file (read by torch, which must be installed), or
        `hf:organisation/name` on the Hugging Face hub.
      name: the model's, in the registry.
      variables: 'params' and 'batch_stats' of the model, as `init` makes them.

    Raises:
      UserError: the source cannot be read, or its tensors are not those of the model: one error
        names all that are missing, surplus or misshapen.
    """
    names = torch_names(name)
    converted, fresh = convert(read_state_dict(source), names, variables, f'{source} ({name})')
    if fresh:
        logging.warning(
            '%s: these layers are not in it or have other classes, and start afresh: %s',
            source,
            ', '.join(fresh),
        )
    return converted


def guess_name(source: str) -> str:
    """Returns the registry's name for a source such as 'hf:timm/resnet50.tv_in1k'.

    Raises:
      UserError: if the source's name does not start with a known model's.
    """
    name = re.split(r'[.-]', source.removeprefix('hf:').rsplit('/', 1)[-1])[0]
    if name not in MODELS:
        raise unknown(f'model (by the name of {source})', name, MODELS)
    return name


def is_head(path: Path) -> bool:
    """Whether a parameter, by its path below 'params', belongs to a classifier or auxiliary head.

    All others are the backbone, which `freeze='backbone'` freezes. A model of one's own calls its
    last layer 'head' or 'classifier'.
    """
    return path[0] in HEADS or path[0].lower().startswith('aux')


def convert(
    state: StateDict, names: TorchNames, variables: Mapping[str, Any], title: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns `variables` filled from a state dict, and the layers that keep the values they had.

    Raises:
      UserError: naming every tensor that is missing, surplus or misshapen; it starts with `title`.
    """
    ours = flatten_dict({k: variables[k] for k in ('params', 'batch_stats') if k in variables})
    absent = _absent_heads(ours, names, state)
    filled, fresh, problems = dict(ours), set(absent), []
    for path, value in ours.items():
        key = names.key(path)
        if path[1] in absent:
            continue
        if key not in state:
            problems.append(f'missing {key}')
            continue
        tensor = _our_layout(state[key], path, value.ndim, names)
        if tensor.shape == value.shape:
            filled[path] = jnp.asarray(tensor, value.dtype)
        elif is_head(path[1:]) and tensor.shape[:-1] == value.shape[:-1]:
            fresh.add('/'.join(path[1:-1]))
        else:
            problems.append(
                f'misshapen {key} {tuple(state[key].shape)} for {"/".join(path[1:])} {value.shape}'
            )
    problems += [f'surplus {key}' for key in _surplus(state, ours, names)]
    if problems:
        raise UserError(f'{title} does not fit the model: {"; ".join(problems)}')
    return {**variables, **unflatten_dict(_whole_layers(filled, ours, fresh))}, sorted(fresh)


def _our_layout(tensor: np.ndarray, path: Path, ndim: int, names: TorchNames) -> np.ndarray:
    """Transposes a torch tensor: kernels there are [out, in, h, w] and [out, in]."""
    tensor = np.asarray(tensor)
    if path[-1] != 'kernel' or tensor.ndim not in (2, 4):
        return tensor
    if ndim == 2 and tensor.ndim == 2:
        window = names.windows.get(path[1:-1], 1)
        if tensor.shape[1] % window**2:
            return tensor.T
        tensor = tensor.reshape(len(tensor), -1, window, window)
    tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
    return tensor.reshape(-1, tensor.shape[-1]) if ndim == 2 else tensor


def _absent_heads(ours: Mapping[Path, Any], names: TorchNames, state: StateDict) -> set[str]:
    """Returns the auxiliary heads of which the state dict has no tensor at all."""
    there: dict[str, bool] = {}
    for path in ours:
        if path[1].lower().startswith('aux'):
            there[path[1]] = there.get(path[1], False) or names.key(path) in state
    return {head for head, any_tensor in there.items() if not any_tensor}


def _surplus(state: StateDict, ours: Mapping[Path, Any], names: TorchNames) -> list[str]:
    """Tensors that the model has no place for; a model without auxiliary heads needs none of theirs."""
    used = {names.key(path) for path in ours}
    has_aux = any(path[1].lower().startswith('aux') for path in ours)
    return sorted(
        key
        for key in set(state) - used
        if not key.endswith('num_batches_tracked')
        and (has_aux or not key.lower().startswith('aux'))
    )


def _whole_layers(
    filled: dict[Path, Any], ours: Mapping[Path, Any], fresh: set[str]
) -> dict[Path, Any]:
    """Takes back what was filled of layers that start afresh: a kernel and its bias go together."""
    return {
        path: ours[path] if '/'.join(path[1:-1]) in fresh else value
        for path, value in filled.items()
    }
