"""Reading of torch state dicts without torch, from files and from the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError, not_installed
from vision.models.weights import packages
from vision.models.weights.torch_files import Tensor, read_torch_file
from vision.models.weights.torch_names import normalise_keys

StateDict = dict[str, np.ndarray]


def read_state_dict(source: str) -> StateDict:
    """Returns the tensors of `source` by torchvision's names, with floats as float32.

    Args:
      source: a `.safetensors` file, a `.pth`, `.pt` or `.bin` file, 'hf:organisation/name', or a
        key of `packages.PACKAGES`.

    Raises:
      UserError: the source does not exist, cannot be read, or needs a library that is missing.
    """
    # Find packaged weights, and download weights from the hub. The suffix determines the format.
    if packages.is_packaged(source):
        path = packages.locate(source)
    else:
        path = _download_weights(source) if source.startswith('hf:') else Path(source)
    try:
        if not path.is_file():
            raise UserError(
                f'{source}: no such file, and neither hf:organisation/name on the hub nor one of '
                f'{", ".join(packages.PACKAGES)}'
            )
        with path.open('rb') as file:
            if file.read(23) == b'version https://git-lfs':
                raise UserError(f'{source} is a Git LFS pointer, not the weights; run git lfs pull')
    except OSError as e:
        raise UserError(f'{source} cannot be read: {e.strerror}') from None
    suffix = path.suffix.lower()
    if suffix == '.safetensors':
        tensors = _read_safetensors(path)
    elif suffix in ('.pth', '.pt', '.bin'):
        tensors = _read_torch(path)
    else:
        raise UserError(f'{source}: weights must be a .safetensors or .pth file')
    return normalise_keys(tensors)


def _read_safetensors(path: Path) -> StateDict:
    """Reads a .safetensors file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as e:
        raise not_installed(f'reading {path}', 'safetensors', 'pretrained') from e
    try:
        # NumPy has no bfloat16; safetensors' flax framework reads it as JAX's.
        with safe_open(path, framework='flax') as file:
            return {key: _as_numpy(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise UserError(f'{path} is not a readable .safetensors file: {e}') from e
    except (AttributeError, TypeError) as e:  # safetensors looks for a type that NumPy lacks
        raise UserError(f'{path} has numbers of a type that is not supported: {e}') from e


def _read_torch(path: Path) -> StateDict:
    """Reads a file of `torch.save`."""
    try:
        loaded, read = read_torch_file(path)
        return {key: _as_numpy(x.array(read)) for key, x in _find_tensors(loaded, path).items()}
    except UserError:
        raise
    except Exception as e:  # a damaged pickle can fail in any way
        raise UserError(f'{path} is damaged or not from torch.save: {_first_line(e)}') from e


def _find_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Returns the state dict of a torch file or of a training checkpoint."""

    def is_one(value: Any) -> bool:
        named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return named and bool(value) and all(isinstance(x, Tensor) for x in value.values())

    if is_one(loaded):
        return loaded
    # A training checkpoint usually has the state dict as 'state_dict' or 'model'.
    found = {k: v for k, v in loaded.items() if is_one(v)} if isinstance(loaded, dict) else {}
    first = [name for name in ('state_dict', 'model', *found) if name in found]
    if not first or (len(found) > 1 and first[0] not in ('state_dict', 'model')):
        raise UserError(
            f'{path} holds {", ".join(map(str, found)) or "no state dict"}; save one dictionary of '
            'tensors, model.state_dict(). Other objects are not read, since they could run code'
        )
    return found[first[0]]


def _as_numpy(value: Any) -> np.ndarray:
    """Converts to NumPy, with all floats as float32."""
    array = np.asarray(value)
    floats = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32, copy=False) if floats else array


def read_hub_config(source: str) -> dict[str, Any]:
    """Returns the `config.json` of 'hf:organisation/name'; {} if there is none.

    timm describes the input of the weights in its 'pretrained_cfg'.

    Raises:
      UserError: the hub cannot be reached.
    """
    path = _download(source, 'config.json')
    try:
        values = json.loads(path.read_text('utf-8')) if path else {}
        if not isinstance(values, dict):
            raise ValueError('it is not an object')
        return values
    except (ValueError, RecursionError) as e:
        raise UserError(f'{source}: its config.json is not valid JSON: {_first_line(e)}') from e


def _download_weights(source: str) -> Path:
    """Downloads the weights of a model on the hub."""
    for filename in ('model.safetensors', 'pytorch_model.bin'):
        path = _download(source, filename)
        if path is not None:
            return path
    raise UserError(f'{source} has neither model.safetensors nor pytorch_model.bin')


def _download(source: str, filename: str) -> Path | None:
    """Returns a file of the hub in the hub client's cache; None if the hub does not have it."""
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
        raise not_installed(f'downloading {source}', 'huggingface-hub', 'pretrained') from e
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # errors are raised anyway
    try:
        return Path(hf_hub_download(source.removeprefix('hf:'), filename))
    except Exception as e:
        # LocalEntryNotFoundError means that there is no network, not that the file does not exist.
        if isinstance(e, EntryNotFoundError) and not isinstance(e, LocalEntryNotFoundError):
            return None
        network = type(e).__module__.split('.')[0] in ('httpx', 'requests', 'httpcore')
        if network or isinstance(e, HfHubHTTPError | HFValidationError | OSError | ValueError):
            raise UserError(
                f'{source} cannot be downloaded: {_first_line(e)}. Without a network, name '
                f'FILE.safetensors or {next(iter(packages.PACKAGES))}; training from scratch takes '
                'config.init_from=None'
            ) from e
        raise
    finally:
        hub_logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    """Returns the first line of an error message, or the error's type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
