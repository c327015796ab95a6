"""Images as callers have them in hand: paths, encoded bytes, Pillow's images and arrays, one or several."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.data.source import ArraySource, BadImage, FileSource, Image, Source, read_file

_TAKEN = 'a path, encoded bytes, an open file, a PIL.Image, a uint8 array [H, W, C] or [H, W], or several of them'


class Given(Source):
    """Images of several kinds and sizes: files, encoded bytes, and pixels uint8 [H, W, C]."""

    name, class_names, encoded = 'images', (), False

    def __init__(self, items: Sequence[str | Image]):
        """Takes paths, bytes and pixels; the pixels have as many channels as the model's preprocessing."""
        self._items, self.num_examples = items, len(items)
        self.labels = np.full(len(items), -1, np.int32)

    def read(self, ids: Sequence[int]) -> tuple[list[Image], np.ndarray]:
        """Encoded images and pixels; a file is read here."""
        found = [self._items[i] for i in ids]
        return [read_file(x) if isinstance(x, str) else x for x in found], self.labels[ids]

    def name_of(self, example: int) -> str:
        """The path, or 'image NUMBER' where there is none."""
        item = self._items[example]
        return item if isinstance(item, str) else f'image {example}'


def gather(
    images: Any, channels: int, image_shape: tuple[int, ...] | None = None
) -> tuple[Source, bool]:
    """Makes a source of whatever images a caller has.

    Args:
      images: one image or several: a path, encoded bytes, a `PIL.Image`, an array uint8 [H, W, C] or
        [H, W]; of several, also an array uint8 [N, H, W, C].
      channels: of the images as the model's preprocessing begins: 3 or 1.
      image_shape: (H, W, C) that arrays must have: those that a run was trained on; None for any.

    Returns:
      The source, and whether it was one image.

    Raises:
      UserError: something else, or a `PIL.Image` that cannot be read.
    """
    images = _scalar(images)
    if is_array := _is_array(images):
        images = _array(images)
    several = is_array and images.ndim == 4
    if several and (image_shape is not None or not len(images)):
        return _in_memory(_checked(images, image_shape)), False
    one = (is_array and images.ndim in (2, 3)) or _is_encoded(images) or _is_pillow(images)
    if not (one or several) and (is_array or not _has_several(images)):
        raise UserError(f'images: {_describe(images)} cannot be classified; give {_TAKEN}')
    items = [images] if one else list(images)
    found = [_item(x, i, channels, image_shape) for i, x in enumerate(items)]
    if found and all(isinstance(x, str) for x in found):
        return FileSource('files', (), tuple(found), np.full(len(found), -1, np.int32)), one  # type: ignore
    # Of a Pillow image the pixels are what its file would have, which need not be the run's shape.
    if found and image_shape is not None and all(map(_is_array, items)):
        return _in_memory(np.stack(found)), one  # type: ignore[arg-type]
    return Given(found), one


def _scalar(value: Any) -> Any:
    """The content of an array of no dimensions: text, or an object."""
    return value.item() if isinstance(value, np.ndarray) and not value.ndim else value


def _item(value: Any, position: int, channels: int, image_shape: Any) -> str | Image:
    value = _scalar(value)
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    if _is_encoded(value):
        data = _read(value) if hasattr(value, 'read') else value
        if isinstance(data, str):
            raise UserError(
                f'images: {_describe(value)} is open as text; open it in binary, with mode rb'
            )
        data = bytes(data)
        return os.fsdecode(data) if _names_file(data) else data
    if _is_pillow(value):
        return _pixels(value, position, channels)
    if not _is_array(value):
        raise UserError(f'images: {_describe(value)} is no image; give {_TAKEN}')
    array = _array(value)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise UserError(f'images: {_describe(array)} is no single image [H, W, C] or [H, W]')
    (array,) = _checked(array[None], image_shape)
    if image_shape is not None or array.shape[-1] == channels:
        return array
    from PIL import Image

    # As a lossless file of them is read: grey repeated, what is transparent laid on white.
    picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    return _pixels(picture, position, channels)


def _read(file: Any) -> Any:
    try:
        return file.read()
    except Exception as e:  # closed, or open for writing
        raise UserError(f'images: {_describe(file)} cannot be read: {_line(str(e))}') from None


def _checked(images: np.ndarray, image_shape: tuple[int, ...] | None) -> np.ndarray:
    """The images [N, H, W, C] as they are, if a run takes such."""
    shape = images.shape[1:]
    if not len(images):
        return images
    if images.dtype != np.uint8:
        raise UserError(
            f'images must be uint8 in 0 … 255, not {images.dtype} {list(images.shape)}: '
            "scale them to that if they are not, and convert them with .astype('uint8')"
        )
    if image_shape is not None and shape != image_shape:
        raise UserError(
            f'images of {list(shape)}; the run was trained on images of '
            f'{list(image_shape)}: resize them, or give their files or PIL images'
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
    """True if it is a path, an image file's bytes, or a file that is open."""
    known = isinstance(value, str | os.PathLike | bytes | bytearray | memoryview)
    return known or (hasattr(value, 'read') and not _is_array(value))


def _names_file(data: bytes) -> bool:
    """True if bytes are a file's path: no image is short, without a zero byte, and called as a file."""
    return len(data) < 4096 and b'\0' not in data and os.path.isfile(data)


def _is_pillow(value: Any) -> bool:
    """True if it is a `PIL.Image`; if so, Pillow was imported."""
    module = sys.modules.get('PIL.Image')
    return module is not None and isinstance(value, module.Image)


def _is_array(value: Any) -> bool:
    """True if it is an array of numbers: NumPy's, JAX's, TensorFlow's, PyTorch's."""
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
