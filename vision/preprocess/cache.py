"""Keeping a split's images in the host's memory, encoded or decoded, from their first use on."""

import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.startup import tf_cpu
from vision.data.source import Source, read_some
from vision.preprocess.decode import MAX_PIXELS

_SAMPLE = 200  # images looked at for the estimate


def check(cache: str, source: Source) -> None:
    """Raises UserError unless this source can be cached that way."""
    if cache == 'raw' and source.paths is None:
        raise UserError(f"data.cache='raw' is for files, not for {source.name}; use 'decoded'")


def report(source: Source, channels: int, cache: str) -> str:
    """Says how much memory a cache of the whole split will take.

    Args:
      source: the split; where its images have several sizes, some of them are looked at.
      channels: of the decoded images.
      cache: raw or decoded.
    """
    if source.image_shape is not None:
        mean = float(np.prod(source.image_shape[:2])) * channels
    elif cache == 'raw':
        mean = float(np.mean([_size(path) for path in _spread(source.paths or ())]))
    else:
        mean = float(np.mean([_pixels(head) for head in _heads(source)])) * channels
    total = mean * source.num_examples
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return (
        f'cache {cache} of {source.name}: about {total / 2**20:,.1f} MiB for '
        f'{source.num_examples:,} images, of {free / 2**20:,.1f} MiB free'
    )


def _spread(examples: Sequence) -> Sequence:
    """Some of them, evenly spread."""
    return examples[:: max(1, len(examples) // _SAMPLE)]


def _heads(source: Source) -> Iterator[bytes]:
    """Yields what encoded images begin with; of the first ones where they are read in sequence."""
    if source.paths is not None:
        yield from map(_head, _spread(source.paths))
        return
    every = range(source.num_examples)
    ids = _spread(every) if source.indexed else every[:_SAMPLE]
    for _, image, _ in read_some(source, ids):
        yield image if isinstance(image, bytes) else b''


def _head(path: str) -> bytes:
    try:
        with open(path, 'rb') as file:
            return file.read(1 << 16)
    except (OSError, ValueError):
        return b''


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0


def _pixels(head: bytes) -> int:
    """The number of pixels of an image; 0 if it cannot be read."""
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(head)).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    return width * height if width * height <= MAX_PIXELS else 0


class RawCache:
    """The files' bytes, by the example's id."""

    def __init__(self, paths: tuple[str, ...]):
        """Takes the split's files; reads none of them yet."""
        self._paths, self._bytes = paths, dict[int, bytes]()

    def read(self, example: Any) -> Any:
        """The file's bytes, in the graph: int64 scalar → string scalar."""
        tf = tf_cpu()
        return tf.ensure_shape(tf.numpy_function(self._read, [example], tf.string), [])

    def _read(self, example: np.int64) -> bytes:
        data = self._bytes.get(int(example))
        if data is None:
            with open(self._paths[int(example)], 'rb') as file:
                data = self._bytes[int(example)] = file.read()
        return data


class DecodedCache:
    """Decoded images, by the example's id."""

    def __init__(self, channels: int):
        """Starts empty."""
        self._images, self._channels = dict[int, np.ndarray](), channels
        self._none = np.empty((0, 0, channels), np.uint8)

    def get(self, example: Any, decode: Any) -> Any:
        """The image, in the graph; `decode()` makes it the first time: uint8 [H, W, C]."""
        tf = tf_cpu()
        shape = [None, None, self._channels]
        kept = tf.numpy_function(
            lambda i: self._images.get(int(i), self._none), [example], tf.uint8
        )
        kept = tf.ensure_shape(kept, shape)

        def put() -> Any:
            image = tf.numpy_function(self._put, [example, decode()], tf.uint8)
            return tf.ensure_shape(image, shape)

        return tf.cond(tf.shape(kept)[0] > 0, lambda: kept, put)

    def _put(self, example: np.int64, image: np.ndarray) -> np.ndarray:
        # A copy: the array that TensorFlow passes is only lent.
        self._images[int(example)] = image.copy()
        return image
