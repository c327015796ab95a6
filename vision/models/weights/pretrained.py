"""Pretrained weights: torchvision's and timm's state dicts, turned into our variables."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.core.errors import UserError
from vision.models.base import abstract_variables, check_finite, is_auxiliary, is_head
from vision.models.registry import MODELS
from vision.models.summary import default_model
from vision.models.weights.state_dicts import StateDict, read_hub_config, read_state_dict
from vision.models.weights.torch_names import TORCHVISION_MODELS, Path, TorchNames, torch_names

IMAGENET_CLASSES: tuple[str, ...] = tuple(
    (resources.files('vision.models.weights') / 'imagenet_classes.txt')
    .read_text('utf-8')
    .splitlines()
)


@dataclass(frozen=True)
class PretrainedInput:
    """Preprocessing that ImageNet weights expect: the shorter side resized, the centre cropped, normalised."""

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    method: str = 'bilinear'


def pretrained_input(name: str, source: str = '') -> PretrainedInput:
    """Returns the preprocessing that weights of the model `name` expect.

    It is torchvision's, unless the weights come from the hub and timm's `config.json` beside them
    says otherwise: timm evaluates many at 288 px, bicubic.
    """
    half = (0.5, 0.5, 0.5)  # what torchvision's `transform_input` makes of ImageNet's mean and std
    default = PretrainedInput()
    if name == 'inception_v3':
        default = PretrainedInput(342, 299, half, half)
    if name == 'googlenet':
        default = PretrainedInput(256, 224, half, half)
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
        raise UserError(f'{source}: its config.json says no input that can be made: {e}') from e


def load_pretrained(
    source: str, name: str, variables: Mapping[str, Any], new_head: bool = True
) -> dict[str, Any]:
    """Returns `variables` with the values of a torchvision or timm state dict.

    A classifier of another number of classes keeps the values it has, and a warning says so; the
    same holds for auxiliary heads that the source does not have.

    Args:
      source: a `.safetensors` file, a `.pth` file of torch, or `hf:organisation/name` on the Hugging Face hub.
      name: the model's, in the registry.
      variables: 'params' and 'batch_stats' of the model, as `init` makes them.
      new_head: whether the classifier may start afresh: not where it is to answer at once.

    Raises:
      UserError: the source cannot be read, its tensors are not those of the model (one error names all that are
        missing, surplus or misshapen), or values are not finite.
    """
    names = torch_names(name)
    converted, fresh = convert(read_state_dict(source), names, variables, f'{source} ({name})')
    check_finite(converted, source)
    if not new_head:
        if not all(is_auxiliary((layer,)) for layer in fresh):
            raise UserError(
                f'{source}: its classifier has another number of classes than the model is asked '
                'for; fine-tune it (config.init_from), or give weights that fit'
            )
    elif fresh:
        logging.warning(
            '%s: these layers are not in it or have other classes, and start afresh: %s',
            source,
            ', '.join(fresh),
        )
    return converted


def guess_name(source: str) -> str:
    """Returns the registry's name for a source such as 'hf:timm/resnet50.tv_in1k'.

    It is what the source's own name begins with, or else the one model that torchvision has too
    and that all of the source's tensors fit, whatever the number of classes.

    Raises:
      UserError: if neither tells.
    """
    name = re.split(r'[.-]', source.removeprefix('hf:').rsplit('/', 1)[-1])[0]
    if name in MODELS:
        return name
    state = read_state_dict(source)
    for known in TORCHVISION_MODELS:
        if not match(state, torch_names(known), _shapes(known)).problems:
            return known
    raise UserError(
        f'{source}: neither its name nor its tensors are those of one of '
        f'{", ".join(TORCHVISION_MODELS)}; name the model with --model'
    )


@cache
def _shapes(name: str) -> dict[str, Any]:
    return abstract_variables(*default_model(name))


@dataclass(frozen=True)
class Match:
    """The fit of a state dict's tensors to a model.

    Attributes:
      tensors: by the path of a variable, its values in our layout.
      fresh: layers that the state dict does not have, or has for other classes.
      problems: every tensor that is missing, surplus or misshapen; none if the two fit.
    """

    tensors: dict[Path, np.ndarray]
    fresh: list[str]
    problems: list[str]


def match(state: StateDict, names: TorchNames, variables: Mapping[str, Any]) -> Match:
    """Looks for each variable (or shape of one) in a state dict."""
    ours = flatten_dict({k: variables[k] for k in ('params', 'batch_stats') if k in variables})
    absent = _absent_heads(ours, names, state)
    tensors, fresh, problems = {}, set(absent), []
    for path, value in ours.items():
        key = names.key(path)
        if path[1] in absent:
            continue
        if key not in state:
            problems.append(f'missing {key}')
            continue
        tensor = _our_layout(state[key], path, value.ndim, names)
        if not np.issubdtype(tensor.dtype, np.floating):  # quantised, say: its scale would be lost
            problems.append(f'{key} of type {tensor.dtype}')
        elif tensor.shape == value.shape:
            tensors[path] = tensor
        elif is_head(path[1:]) and tensor.shape[:-1] == value.shape[:-1]:
            fresh.add('/'.join(path[1:-1]))
        else:
            problems.append(
                f'misshapen {key} {tuple(state[key].shape)} for {"/".join(path[1:])} {value.shape}'
            )
    problems += [f'surplus {key}' for key in _surplus(state, ours, names)]
    # A kernel and its bias go together.
    whole = {p: t for p, t in tensors.items() if '/'.join(p[1:-1]) not in fresh}
    return Match(whole, sorted(fresh), problems)


def convert(
    state: StateDict, names: TorchNames, variables: Mapping[str, Any], title: str
) -> tuple[dict[str, Any], list[str]]:
    """Returns `variables` filled from a state dict, and the layers that keep the values they had.

    Raises:
      UserError: naming every tensor that is missing, surplus or misshapen; it starts with `title`.
    """
    found = match(state, names, variables)
    if found.problems:
        raise UserError(f'{title} does not fit the model: {"; ".join(found.problems)}')
    ours = flatten_dict({k: v for k, v in variables.items() if k in ('params', 'batch_stats')})
    filled = {
        path: jnp.asarray(found.tensors[path], value.dtype) if path in found.tensors else value
        for path, value in ours.items()
    }
    return {**variables, **unflatten_dict(filled)}, found.fresh


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
        if is_auxiliary(path[1:]):
            there[path[1]] = there.get(path[1], False) or names.key(path) in state
    return {head for head, any_tensor in there.items() if not any_tensor}


def _surplus(state: StateDict, ours: Mapping[Path, Any], names: TorchNames) -> list[str]:
    """Tensors that the model has no place for; a model without auxiliary heads needs none of theirs."""
    used = {names.key(path) for path in ours}
    has_aux = any(is_auxiliary(path[1:]) for path in ours)
    return sorted(
        key
        for key in set(state) - used
        if np.shape(state[key]) not in ((), (1,))  # a count, as num_batches_tracked
        and (has_aux or not key.lower().startswith('aux'))
    )
