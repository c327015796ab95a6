"""Reading torch state dicts, from files and from the Hugging Face hub, without torch."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError
from vision.models.weights import packages
from vision.models.weights.torch_files import Tensor, read_torch_file
from vision.models.weights.torch_names import normalise_keys

StateDict = dict[str, np.ndarray]

_EXTRA = 'pip install "jax-image-classification[pretrained]"'


def read_state_dict(source: str) -> StateDict:
    """Returns the tensors of `source` by torchvision's names, floats as float32.

    Args:
      source: a `.safetensors` file, a `.pth` or `.pt` file, 'hf:organisation/name', or a name of `packages.PACKAGES`.

    Raises:
      UserError: the source does not exist, cannot be read, or needs a library that is not there.
    """
    if packages.is_packaged(source):
        path = packages.locate(source)
    else:
        path = _download_weights(source) if source.startswith('hf:') else Path(source)
    if not path.is_file():
        raise UserError(
            f'{source}: no such file (nor hf:organisation/name of the hub, nor one of {", ".join(packages.PACKAGES)})'
        )
    if path.suffix == '.safetensors':
        tensors = _read_safetensors(path)
    elif path.suffix in ('.pth', '.pt', '.bin'):
        tensors = _read_torch(path)
    else:
        raise UserError(f'{source}: weights are read from .safetensors and .pth files')
    return normalise_keys(tensors)


def _read_safetensors(path: Path) -> StateDict:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as e:
        raise UserError(f'{path}: reading it needs safetensors: {_EXTRA}') from e
    try:
        # NumPy has no bfloat16 of its own; the flax framework of safetensors reads it as JAX's.
        with safe_open(path, framework='flax') as file:
            return {key: _as_numpy(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f'{path} is no readable .safetensors file: {e}') from e


def _read_torch(path: Path) -> StateDict:
    try:
        loaded, read = read_torch_file(path)
        return {key: _as_numpy(x.array(read)) for key, x in _find_tensors(loaded, path).items()}
    except UserError:
        raise
    except Exception as e:  # a damaged pickle asks for anything
        raise UserError(f'{path} is damaged, or no file of torch.save: {_first_line(e)}') from e


def _find_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file of torch holds: all of it, or an entry of a training's checkpoint."""

    def is_one(value: Any) -> bool:
        named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return named and bool(value) and all(isinstance(x, Tensor) for x in value.values())

    if is_one(loaded):
        return loaded
    found = {k: v for k, v in loaded.items() if is_one(v)} if isinstance(loaded, dict) else {}
    first = [name for name in ('state_dict', 'model', *found) if name in found]
    if not first or (len(found) > 1 and first[0] not in ('state_dict', 'model')):
        raise UserError(
            f'{path} holds {", ".join(map(str, found)) or "no state dict"}; give one dictionary of tensors, as '
            'model.state_dict(): what else a file holds is not read, since code could hide in it'
        )
    return found[first[0]]


def _as_numpy(value: Any) -> np.ndarray:
    """Floats of all sizes as float32, all else as it is."""
    array = np.asarray(value)
    floats = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32, copy=False) if floats else array


def read_hub_config(source: str) -> dict[str, Any]:
    """Returns the `config.json` beside the weights of 'hf:organisation/name'; {} if it has none.

    timm's say under 'pretrained_cfg' what the weights expect of an image.

    Raises:
      UserError: the hub cannot be reached.
    """
    path = _download(source, 'config.json')
    try:
        values = json.loads(path.read_text('utf-8')) if path else {}
        if not isinstance(values, dict):
            raise ValueError('it holds no object')
        return values
    except (ValueError, RecursionError) as e:
        raise UserError(f'{source}: its config.json is no JSON: {_first_line(e)}') from e


def _download_weights(source: str) -> Path:
    for filename in ('model.safetensors', 'pytorch_model.bin'):
        path = _download(source, filename)
        if path is not None:
            return path
    raise UserError(f'{source} has neither model.safetensors nor pytorch_model.bin')


def _download(source: str, filename: str) -> Path | None:
    """Returns the hub's file, as it lies in the hub client's cache; None if the hub has none."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub import logging as hub_logging
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as e:
        raise UserError(f'{source}: downloading it needs huggingface-hub: {_EXTRA}') from e
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # of what fails, it warns and then raises
    try:
        return Path(hf_hub_download(source.removeprefix('hf:'), filename))
    except Exception as e:
        # A local entry is not found where there is no network; that says nothing of the hub.
        if isinstance(e, EntryNotFoundError) and not isinstance(e, LocalEntryNotFoundError):
            return None
        network = type(e).__module__.split('.')[0] in ('httpx', 'requests', 'httpcore')
        if network or isinstance(e, HfHubHTTPError | HFValidationError | OSError | ValueError):
            raise UserError(f'{source} cannot be downloaded: {_first_line(e)}') from e
        raise
    finally:
        hub_logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
