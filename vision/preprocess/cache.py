"""Caches of a split's images in host memory, encoded or decoded, filled at first use."""

import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.startup import tf_cpu
from vision.data.source import Source, read_some
from vision.preprocess.decode import MAX_PIXELS

_SAMPLE = 200  # images that are examined to estimate the size of a cache


def check(cache: str, source: Source) -> None:
    """Raises UserError if a source cannot be cached in this form."""
    if cache == 'raw' and source.paths is None:
        raise UserError(
            f"data.cache='raw' is for image files, not for {source.name}; use 'decoded'"
        )


def report(source: Source, channels: int, cache: str) -> str:
    """Describes how much memory a cache of the whole split will take.

    Args:
      source: the split; if its images differ in size, a sample is examined.
      channels: number of channels of the decoded images.
      cache: raw or decoded.
    """
    # Estimate the mean number of bytes of an image.
    if source.image_shape is not None:
        mean = float(np.prod(source.image_shape[:2])) * channels
    elif cache == 'raw':
        mean = float(np.mean([_size(path) for path in _spread(source.paths or ())]))
    else:
        mean = float(np.mean([_pixels(head) for head in _heads(source)])) * channels
    # Compare the total with the free memory, if the system reports it; macOS does not.
    total = mean * source.num_examples
    text = (
        f'cache {cache} of {source.name}: about {total / 2**20:,.1f} MiB for '
        f'{source.num_examples:,} images'
    )
    if 'SC_AVPHYS_PAGES' not in os.sysconf_names:
        return text
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return f'{text}, of {free / 2**20:,.1f} MiB free'


def _spread(examples: Sequence) -> Sequence:
    """Returns an evenly spread sample of examples."""
    return examples[:: max(1, len(examples) // _SAMPLE)]


def _heads(source: Source) -> Iterator[bytes]:
    """Yields the first bytes of a sample of encoded images.

    If the source can only be read in sequence, the sample is its first images.
    """
    if source.paths is not None:
        yield from map(_head, _spread(source.paths))
        return
    every = range(source.num_examples)
    ids = _spread(every) if source.indexed else every[:_SAMPLE]
    for _, image, _ in read_some(source, ids):
        yield image if isinstance(image, bytes) else b''


def _head(path: str) -> bytes:
    """Reads the first 64 KiB of a file; empty if it cannot be read."""
    try:
        with open(path, 'rb') as file:
            return file.read(1 << 16)
    except (OSError, ValueError):
        return b''


def _size(path: str) -> int:
    """The size of a file in bytes; 0 if it cannot be read."""
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0


def _pixels(head: bytes) -> int:
    """The number of pixels that an image's header states; 0 if it cannot be read."""
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(head)).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    # Images above the limit are refused, so they need no memory.
    return width * height if width * height <= MAX_PIXELS else 0


class RawCache:
    """Cache of the bytes of image files, by example id."""

    def __init__(self, paths: tuple[str, ...]):
        """Takes the paths of the split's files; reads none of them yet."""
        self._paths, self._bytes = paths, dict[int, bytes]()

    def read(self, example: Any) -> Any:
        """TensorFlow op that returns a file's bytes: example id, int64 [] → string []."""
        tf = tf_cpu()
        # numpy_function loses the shape.
        return tf.ensure_shape(tf.numpy_function(self._read, [example], tf.string), [])

    def _read(self, example: np.int64) -> bytes:
        """Returns a file's bytes from the cache, or reads and caches them."""
        data = self._bytes.get(int(example))
        if data is None:
            with open(self._paths[int(example)], 'rb') as file:
                data = self._bytes[int(example)] = file.read()
        return data


class DecodedCache:
    """Cache of decoded images, by example id."""

    def __init__(self, channels: int):
        """Creates an empty cache for images with a number of channels."""
        self._images, self._channels = dict[int, np.ndarray](), channels
        self._none = np.empty((0, 0, channels), np.uint8)

    def get(self, example: Any, decode: Any) -> Any:
        """TensorFlow op that returns an image, uint8 [H, W, C].

        Args:
          example: the id, int64 [].
          decode: function without arguments that decodes the image; called at its first use.
        """
        tf = tf_cpu()
        # An image that is not in the cache is represented by one of height 0.
        shape = [None, None, self._channels]
        kept = tf.numpy_function(
            lambda i: self._images.get(int(i), self._none), [example], tf.uint8
        )
        kept = tf.ensure_shape(kept, shape)

        def put() -> Any:
            image = tf.numpy_function(self._put, [example, decode()], tf.uint8)
            return tf.ensure_shape(image, shape)

        # Return the cached image, or decode and cache it.
        return tf.cond(tf.shape(kept)[0] > 0, lambda: kept, put)

    def _put(self, example: np.int64, image: np.ndarray) -> np.ndarray:
        """Stores an image and returns it."""
        # Copy the array, because TensorFlow reuses its memory.
        self._images[int(example)] = image.copy()
        return image
