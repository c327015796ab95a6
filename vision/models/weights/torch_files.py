"""Reading of `torch.save` files without torch and without running code from them.

Such a file is a pickle of names and shapes, and the values: as files of a zip file (since torch
1.6), or after the pickle in the same file. Only the constructors in `_CONSTRUCTORS` are executed.
Everything else that the pickle names, such as a trainer's arguments or a module's class, is neither
imported nor called and becomes an `Unread`.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that is not a zip

# torch's names of the types of storages.
_TYPES = {
    'Double': np.float64, 'Float': np.float32, 'Half': np.float16, 'BFloat16': jnp.bfloat16, 'Long': np.int64,
    'Int': np.int32, 'Short': np.int16, 'Char': np.int8, 'Byte': np.uint8, 'Bool': np.bool_,
}  # fmt: skip


class Unread:
    """Placeholder of an object that is not read; ignores all operations of the pickle on it."""

    def __init__(self, *arguments: Any, **named: Any):
        """Ignores all arguments."""

    def _nothing(self, *arguments: Any, **named: Any) -> 'Unread':
        return Unread()

    __call__ = __setitem__ = append = extend = add = _nothing


class Storage(NamedTuple):
    """A flat array of numbers in the file; `key` is its name in the pickle."""

    key: str
    dtype: np.dtype


class Tensor(NamedTuple):
    """A view into a storage; `offset` and `stride` count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, read: Callable[[Storage], np.ndarray]) -> np.ndarray:
        """Returns the values from the storage that `read` returns.

        Raises:
          ValueError: the storage is too short.
        """
        numbers = read(self.storage)
        if math.prod(self.shape) > len(numbers):
            raise ValueError(f'{len(numbers)} values for a tensor of shape {self.shape}')
        # Build a strided view; NumPy checks offset and strides against the buffer.
        size = self.storage.dtype.itemsize
        stride = tuple(n * size for n in self.stride)
        return np.ndarray(self.shape, numbers.dtype, numbers, self.offset * size, stride)


_CONSTRUCTORS: dict[tuple[str, str], Any] = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch._utils', '_rebuild_tensor'): Tensor,
    ('torch._utils', '_rebuild_tensor_v2'): lambda *arguments: Tensor(*arguments[:4]),
    ('torch._utils', '_rebuild_parameter'): lambda tensor, *_: tensor,
    ('torch._utils', '_rebuild_parameter_with_state'): lambda tensor, *_: tensor,
    **{('torch', f'{name}Storage'): np.dtype(kind) for name, kind in _TYPES.items()},
}


# Use the Python implementation: the C one allocates any size that a damaged instruction states.
class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Interprets a pickle without imports, calls and attribute assignments."""

    # Without BYTEARRAY8, which allocates memory too and is not used by torch.
    dispatch: ClassVar[dict[int, Callable]] = {
        **{k: v for k, v in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]},  # type: ignore[attr-defined]
        pickle.BUILD[0]: lambda self: self.stack.pop(),
    }

    def __init__(self, file: io.BytesIO):
        super().__init__(file, encoding='utf-8')
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns a known constructor, else `Unread`."""
        return _CONSTRUCTORS.get((module, name), Unread)

    def persistent_load(self, pid: Any) -> Any:
        """Returns the `Storage` that a persistent id names."""
        kind, dtype, key = pid[:3]
        if kind != 'storage' or not isinstance(dtype, np.dtype):
            return Unread()
        return self.storages.setdefault(str(key), Storage(str(key), dtype))


def read_torch_file(path: Path) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    """Reads a file of `torch.save`.

    Args:
      path: path of the file.

    Returns:
      The object, with `Tensor` for tensors and `Unread` for objects that are not read; and a
      function that reads a storage.

    Raises:
      Exception: of any kind, if the file is damaged or has another format.
    """
    return _read_zip(path) if zipfile.is_zipfile(path) else _read_in_a_row(path)


def _read_zip(path: Path) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    """Reads the zip format of torch 1.6 and later."""
    archive = zipfile.ZipFile(path)
    (index,) = [name for name in archive.namelist() if name.endswith('/data.pkl')]
    root = index.removesuffix('data.pkl')

    def read(name: str) -> bytes:
        if archive.getinfo(root + name).compress_type != zipfile.ZIP_STORED:
            # torch does not compress, and a small compressed file could expand to any size.
            raise ValueError(f'{name} is compressed')
        return archive.read(root + name)

    if f'{root}byteorder' in archive.namelist():
        _check_order(read('byteorder') == b'little')
    found = _Unpickler(io.BytesIO(read('data.pkl'))).load()
    return found, lambda storage: np.frombuffer(read(f'data/{storage.key}'), storage.dtype)


def _read_in_a_row(path: Path) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    """Reads the old format: several pickles, followed by the storages."""
    data = path.read_bytes()
    file = io.BytesIO(data)
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError('it has no magic number of torch')
    _, about = _Unpickler(file).load(), _Unpickler(file).load()
    _check_order(about['little_endian'])
    unpickler = _Unpickler(file)
    found, keys = unpickler.load(), _Unpickler(file).load()
    # The storages follow in the order of `keys`, each after its 8-byte count.
    places, place = {}, file.tell()
    for key in keys:
        places[key] = place + 8, int.from_bytes(data[place : place + 8], 'little')
        place += 8 + places[key][1] * unpickler.storages[key].dtype.itemsize

    def read(storage: Storage) -> np.ndarray:
        start, count = places[storage.key]
        return np.frombuffer(data, storage.dtype, count, start)

    return found, read


def _check_order(little: bool) -> None:
    """Raises ValueError for big-endian files."""
    if not little:
        raise ValueError('its numbers are big-endian')
