"""Conversion of one or several images (paths, bytes, Pillow images, arrays) to a source."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.data.source import ArraySource, BadImage, FileSource, Image, Source, read_file

_ACCEPTED = (
    'a path, encoded bytes, an open file, a PIL.Image, '
    'a uint8 array [H, W, C] or [H, W], or several of them'
)


class Given(Source):
    """A source of images of mixed kinds and sizes: files, encoded bytes, pixels uint8 [H, W, C]."""

    name, class_names, encoded = 'images', (), False

    def __init__(self, items: Sequence[str | Image]):
        """Stores paths, encoded bytes and pixels with as many channels as the model expects."""
        self._items, self.num_examples = items, len(items)
        self.labels = np.full(len(items), -1, np.int32)

    def read(self, ids: Sequence[int]) -> tuple[list[Image], np.ndarray]:
        """Returns encoded images or pixels, and their labels (−1); files are read here."""
        found = [self._items[i] for i in ids]
        return [read_file(x) if isinstance(x, str) else x for x in found], self.labels[ids]

    def name_of(self, example: int) -> str:
        """Returns the path of a file, and 'image NUMBER' for any other image."""
        item = self._items[example]
        return item if isinstance(item, str) else f'image {example}'


def gather(
    images: Any, channels: int, image_shape: tuple[int, ...] | None = None
) -> tuple[Source, bool]:
    """Makes a source of a caller's images.

    Args:
      images: one image or several. An image is a path, encoded bytes, an open file, a `PIL.Image`,
        or a uint8 array [H, W, C] or [H, W]. Several images may also be one array [N, H, W, C].
      channels: the number of channels that the model's preprocessing expects, 3 or 1.
      image_shape: the (H, W, C) of the arrays that the run was trained on, which arrays must have;
        None for any shape.

    Returns:
      The source, and True if it was a single image.

    Raises:
      UserError: an image has another type, or a `PIL.Image` cannot be read.
    """
    # An array [N, H, W, C] of the run's shape needs no conversion.
    images = _scalar(images)
    is_array = _is_array(images)
    several = is_array and images.ndim == 4
    if several and (image_shape is not None or not len(images)):
        return _in_memory(_checked(images, image_shape)), False
    # Make a list of images; reject anything that is neither one image nor several.
    one = (is_array and images.ndim in (2, 3)) or _is_encoded(images) or _is_pillow(images)
    if not (one or several) and (is_array or not _has_several(images)):
        raise UserError(f'images: {_describe(images)} cannot be classified; give {_ACCEPTED}')
    items = [images] if one else list(images)
    # Choose the source: files only, arrays of the run's shape only, or a mixture.
    found = [_item(x, i, channels, image_shape) for i, x in enumerate(items)]
    if found and all(isinstance(x, str) for x in found):
        return FileSource('files', (), tuple(found), np.full(len(found), -1, np.int32)), one  # type: ignore
    # The pixels of a Pillow image may have any shape, so they are treated like a file.
    if found and image_shape is not None and all(map(_is_array, items)):
        return _in_memory(np.stack(found)), one  # type: ignore[arg-type]
    return Given(found), one


def _scalar(value: Any) -> Any:
    """Converts array types to NumPy, as they may hold text, and unwraps 0-dimensional arrays."""
    value = _array(value) if _is_array(value) else value
    return value.item() if isinstance(value, np.ndarray) and not value.ndim else value


def _item(value: Any, position: int, channels: int, image_shape: Any) -> str | Image:
    """Converts one image to a path, encoded bytes or pixels uint8 [H, W, C]."""
    value = _scalar(value)
    # Paths and encoded images.
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    if _is_encoded(value):
        data = _read(value) if hasattr(value, 'read') else value
        if isinstance(data, str):
            raise UserError(
                f'images: {_describe(value)} is open in text mode; open it with mode rb'
            )
        data = bytes(data)
        return os.fsdecode(data) if _names_file(data) else data
    # Pillow images and arrays.
    if _is_pillow(value):
        return _pixels(value, position, channels)
    if not _is_array(value):
        raise UserError(f'images: {_describe(value)} is no image; give {_ACCEPTED}')
    array = value[..., None] if value.ndim == 2 else value
    if array.ndim != 3:
        raise UserError(f'images: {_describe(array)} is not one image [H, W, C] or [H, W]')
    (array,) = _checked(array[None], image_shape)
    if image_shape is not None or array.shape[-1] == channels:
        return array
    from PIL import Image

    # Convert the channels as for a file: repeat grey, blend transparent pixels with white.
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    return _pixels(picture, position, channels)


def _read(file: Any) -> Any:
    try:
        return file.read()
    except Exception as e:  # closed, or open for writing
        raise UserError(f'images: {_describe(file)} cannot be read: {_line(str(e))}') from None


def _checked(images: np.ndarray, image_shape: tuple[int, ...] | None) -> np.ndarray:
    """Returns the images [N, H, W, C] unchanged; raises UserError for a wrong dtype or shape."""
    shape = images.shape[1:]
    if not len(images):
        return images
    if images.dtype != np.uint8:
        raise UserError(
            f'images must be uint8 in 0 … 255, not {images.dtype} {list(images.shape)}: '
            "scale them to that range, and convert them with .astype('uint8')"
        )
    if image_shape is not None and shape != image_shape:
        raise UserError(
            f'images of {list(shape)}; the run was trained on images of '
            f'{list(image_shape)}: resize them, or pass files or PIL images instead'
        )
    if not all(shape) or (image_shape is None and shape[-1] > 4):
        raise UserError(f'images of {list(shape)} must be [H, W, C] with 1 to 4 channels')
    return images


def _in_memory(images: np.ndarray) -> ArraySource:
    return ArraySource('images', (), images, np.zeros(len(images), np.int32))


def _pixels(image: Any, position: int, channels: int) -> np.ndarray:
    from vision.preprocess.decode import pixels

    try:
        return pixels(image, channels)
    except BadImage as e:
        raise UserError(f'image {position} cannot be read: {e}') from None


def _has_several(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, Mapping)


def _is_encoded(value: Any) -> bool:
    """Returns True for a path, the bytes of an image file, or an open file."""
    known = isinstance(value, str | os.PathLike | bytes | bytearray | memoryview)
    return known or (hasattr(value, 'read') and not _is_array(value))


def _names_file(data: bytes) -> bool:
    """Returns True if bytes are the path of an existing file."""
    # Encoded images are longer than any path or contain a zero byte.
    return len(data) < 4096 and b'\0' not in data and os.path.isfile(data)


def _is_pillow(value: Any) -> bool:
    """Returns True for a `PIL.Image`."""
    # Do not import Pillow for the test: if it is not imported, there can be no such image.
    module = sys.modules.get('PIL.Image')
    return module is not None and isinstance(value, module.Image)


def _is_array(value: Any) -> bool:
    """Returns True for an array of numbers from NumPy, JAX, TensorFlow or PyTorch."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in 'OUS'
    other = _is_pillow(value) or isinstance(value, np.generic | memoryview)
    return hasattr(value, '__array__') and hasattr(value, 'shape') and not other


def _array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as e:  # a tensor on another device, or with a gradient
        raise UserError(f'images: {_describe(value)} is no array: {_line(str(e))}') from None


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'{value.dtype} {list(value.shape)}'
    return f'{_line(repr(value)):.60} ({type(value).__name__})'


def _line(text: str) -> str:
    return ' '.join(text.split())
