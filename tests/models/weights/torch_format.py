"""Writes `torch.save` files without torch: zip files, and the format before torch 1.6."""

import io
import pickle
import zipfile

import numpy as np

_KINDS = {'float64': 'Double', 'float32': 'Float', 'float16': 'Half', 'bfloat16': 'BFloat16', 'int64': 'Long', 'int8': 'Char'}  # fmt: skip


class Name:
    """A global name that a pickle imports: a function or a class."""

    def __init__(self, module, name):
        self.text = f'c{module}\n{name}\n'.encode()

    def __call__(self):
        raise AssertionError


class Call:
    """An object that a pickle makes by calling a name."""

    def __init__(self, module, name, *arguments):
        self.made = Name(module, name), arguments

    def __reduce__(self):
        return self.made


class Pickler(pickle._Pickler):
    """Writes arrays as torch writes tensors, and keeps their values in `storages`."""

    def __init__(self, file, in_a_row):
        super().__init__(file, protocol=2)
        self.in_a_row, self.storages = in_a_row, {}

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Name):
            self.write(obj.text)
        elif isinstance(obj, np.ndarray):
            strides = tuple(n // obj.itemsize for n in obj.strides)
            storage = ('storage', obj)
            super().save(
                Call(
                    'torch._utils', '_rebuild_tensor_v2', storage, 0, obj.shape, strides, False, {}
                )
            )
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        if not (isinstance(obj, tuple) and obj[:1] == ('storage',) and len(obj) == 2):
            return None
        values, key = obj[1], str(len(self.storages))
        self.storages[key] = values
        kind = Name('torch', f'{_KINDS[str(values.dtype)]}Storage')
        return ('storage', kind, key, 'cpu', values.size, *([None] if self.in_a_row else []))


def save(path, value, in_a_row=False):
    """Writes a value of dicts, arrays and `Call`s; returns the bytes."""
    file = io.BytesIO()
    pickler = Pickler(file, in_a_row)
    if in_a_row:
        for about in (
            0x1950A86A20F9469CFC6C,
            1001,
            {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}},
        ):
            pickle.dump(about, file, protocol=2)
    pickler.dump(value)
    if in_a_row:
        pickle.dump(list(pickler.storages), file, protocol=2)
        for values in pickler.storages.values():
            file.write(np.int64(values.size).tobytes() + values.tobytes(order='A'))
        path.write_bytes(file.getvalue())
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', file.getvalue())
            archive.writestr('archive/byteorder', 'little')
            for key, values in pickler.storages.items():
                archive.writestr(f'archive/data/{key}', values.tobytes(order='A'))
            archive.writestr('archive/version', '3\n')
    return path.read_bytes()
