"""Sources that read arrays from files: IDX (MNIST, Fashion-MNIST) and NumPy's `.npz`."""

import gzip
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vision.core.durations import parse_share
from vision.core.errors import UserError
from vision.data.arrays import check_labels, check_split, from_arrays, number_names
from vision.data.order import hold_out
from vision.data.shares import warn_of_empty_classes
from vision.data.source import ArraySource, NoSplitError

# The start of the file names of each split.
_IDX_PREFIX = {'train': 'train', 'test': 't10k'}

# Exceptions that NumPy raises for a file of another kind (such as .npy, which has no names), a
# damaged file, and a file whose header states an enormous size.
_NOT_NPZ = (
    OSError, ValueError, TypeError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def idx(
    split: str,
    path: str | None,
    validation: int | float | str | None = None,
    class_names: Sequence[str] = (),
) -> ArraySource:
    """Opens one split of a data set in four IDX files, the format of MNIST (LeCun).

    Args:
      split: train, validation or test.
      path: the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k
        counterparts, each possibly gzipped.
      validation: part of the training split to use for validation, stratified by class: a number of
        examples, or a share such as '10%' or 0.1.
      class_names: names in the order of the labels; empty for the numbers as names.

    Returns:
      A source with images uint8 [N, H, W, 1].

    Raises:
      UserError: a file is missing or damaged, or images and labels do not match.
    """
    if not path:
        raise UserError(
            'data.path is not set: give the folder with the four IDX files (--config.data.path=…)'
        )
    # Find and read the images and labels of the split.
    check_split('idx', split, ('train', 'validation', 'test'))
    prefix = _IDX_PREFIX['test' if split == 'test' else 'train']
    path = os.path.expanduser(path)
    image_file = _find_idx(Path(path), f'{prefix}-images', 'idx3-ubyte')
    label_file = _find_idx(Path(path), f'{prefix}-labels', 'idx1-ubyte')
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(
            f'{image_file} and {label_file} do not match: shapes {images.shape} and {labels.shape}'
        )
    # Count the classes in the training labels, because the test split may lack the last class.
    names = class_names or number_names(
        read_idx(_find_idx(Path(path), 'train-labels', 'idx1-ubyte'))
    )
    source = from_arrays(f'idx:{path}:{split}', images[..., None], labels, names)
    return source if split == 'test' else subset(source, split, validation)


def npz(
    split: str,
    path: str | None,
    validation: int | float | str | None = None,
    class_names: Sequence[str] = (),
) -> ArraySource:
    """Opens one split of a `.npz` file.

    Its arrays are named x_train, y_train, … (Keras) or train_images, train_labels, ….

    Args:
      split: train, validation or test. A validation split without arrays is taken from train.
      path: the file, with images uint8 [N, H, W] or [N, H, W, C] and labels as integers [N] or
        [N, 1], or as floats 0 and 1 [N, K] for images with several labels.
      validation: as in `idx`.
      class_names: names in the order of the labels; empty for the numbers as names.

    Raises:
      UserError: the file or an array does not exist, or an array has the wrong dtype or shape.
    """
    if not path:
        raise UserError('data.path is not set: give the .npz file (--config.data.path=…)')
    check_split('npz', split, ('train', 'validation', 'test'))
    # Read the arrays of the split; `validation` falls back to the arrays of `train`.
    try:
        with np.load(os.path.expanduser(path), allow_pickle=False) as file:
            own = _npz_names(file.files, split)
            names = own or (_npz_names(file.files, 'train') if split == 'validation' else None)
            if names is None:
                raise NoSplitError(
                    f'{path} has no split {split!r}: it needs the arrays x_{split} and y_{split} '
                    f'(or {split}_images and {split}_labels), but has {", ".join(file.files)}'
                )
            images, labels = file[names[0]], file[names[1]]
            has_validation = _npz_names(file.files, 'validation') is not None
            # Count the classes in the training labels, because another split may lack the last.
            every_label = file[(_npz_names(file.files, 'train') or names)[1]]
    except FileNotFoundError:
        raise UserError(f'data.path={path}: there is no such file') from None
    except _NOT_NPZ as e:
        raise UserError(f'{path} is not a readable .npz file: {e}') from None
    # Convert the arrays to the shapes [N] or [N, K], and [N, H, W, C].
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    images = images[..., None] if images.ndim == 3 else images
    name = f'npz:{path}:{split}'
    if every_label.ndim == 2 and every_label.shape[1] == 1:
        every_label = every_label[:, 0]
    check_labels(name, every_label)
    source = from_arrays(name, images, labels, class_names or number_names(every_label))
    # A validation split without arrays is taken from train.
    if has_validation or split == 'test':
        return source
    return subset(source, split, validation)


def subset(source: ArraySource, split: str, validation: int | float | str | None) -> ArraySource:
    """Returns the part of a training source that belongs to `split`, 'train' or 'validation'."""
    validation = parse_share(validation, 'data.validation') or 0
    if split == 'validation' and not validation:
        raise NoSplitError(
            f'{source.name}: there is no validation split; take one from train with '
            "data.validation, for example '10%'"
        )
    train, held_out = hold_out(source.labels, validation)
    part = source.subset(held_out if split == 'validation' else train)
    warn_of_empty_classes(part)
    return part


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Returns:
      An array uint8 of the shape in the file's header.

    Raises:
      UserError: the file has another format, or its length does not match its header.
    """
    # Read the file, which may be gzipped under any name.
    try:
        with open(path, 'rb') as file:
            data = file.read()
        if data[:2] == b'\x1f\x8b':
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f'{path} cannot be read: {e}') from None
    if len(data) < 4 or data[:3] != b'\0\0\x08':
        raise UserError(f'{path} is not an IDX file of unsigned bytes')
    # The header: two zero bytes, a type, the number of axes, and a big-endian length per axis.
    ndim = data[3]
    header = 4 + 4 * ndim
    if len(data) < header:
        raise UserError(f'{path} is damaged: it ends inside its header')
    shape = struct.unpack(f'>{ndim}I', data[4:header])
    # The data must have exactly the stated size.
    if len(data) - header != math.prod(shape):
        raise UserError(
            f'{path} is damaged: its header says {math.prod(shape)} bytes for {list(shape)}, '
            f'but it has {len(data) - header}'
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _find_idx(folder: Path, stem: str, kind: str) -> Path:
    """Finds a file under its usual names: with '-' or '.' in the middle, gzipped or not."""
    names = [f'{stem}{dot}{kind}{gz}' for gz in ('', '.gz') for dot in ('-', '.')]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    what = 'there is no such folder' if not folder.is_dir() else f'it has no {names[0]}[.gz]'
    raise UserError(f'data.path={folder}: {what}')


def _npz_names(files: Sequence[str], split: str) -> tuple[str, str] | None:
    """Returns the names of a split's images and labels in an .npz file; None if it has none."""
    short = {'validation': ('validation', 'valid', 'val')}.get(split, (split,))
    for name in short:
        for pair in ((f'x_{name}', f'y_{name}'), (f'{name}_images', f'{name}_labels')):
            if all(p in files for p in pair):
                return pair
    return None
