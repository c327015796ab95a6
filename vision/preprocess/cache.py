"""Keeping a split's images in the host's memory, encoded or decoded, from their first use on."""

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.tf_cpu import tf_cpu
from vision.data.source import ArraySource, FileSource, RecordSource, Source, TFDSSource
from vision.preprocess.decode import MAX_PIXELS

CACHES = ('none', 'raw', 'decoded')
_SAMPLE = 200  # images looked at for the estimate


def check(cache: str, source: Source) -> None:
    """Raises UserError unless this source can be cached that way."""
    if cache not in CACHES:
        raise UserError(f'data.cache={cache!r}: it is one of {", ".join(CACHES)}')
    if cache == 'raw' and not isinstance(source, FileSource):
        raise UserError(f"data.cache='raw' is for files, not for {source.name}; use 'decoded'")


def report(source: Source, channels: int, cache: str) -> str:
    """Says how much memory a cache of the whole split will take.

    Args:
      source: the split; where its images have several sizes, some of them are looked at.
      channels: of the decoded images.
      cache: raw or decoded.
    """
    shape = _known_shape(source)
    if shape is not None:
        mean = float(np.prod(shape[:2])) * channels
    else:
        mean = float(np.mean([_bytes(head, channels, cache) for head in _sample(source)]))
    total = mean * source.num_examples
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return (
        f'cache {cache} of {source.name}: about {total / 2**20:,.1f} MiB for '
        f'{source.num_examples:,} images, of {free / 2**20:,.1f} MiB free'
    )


def _known_shape(source: Source) -> tuple[int, ...] | None:
    if isinstance(source, ArraySource):
        return source.images.shape[1:]
    return None if isinstance(source, FileSource) else source.image_shape


def _sample(source: Source) -> Iterator[str | bytes]:
    """Yields paths or encoded images, evenly spread; the first ones of what is read in sequence."""
    every = max(1, source.num_examples // _SAMPLE)
    if isinstance(source, FileSource):
        yield from source.paths[::every]
    elif isinstance(source, RecordSource):
        yield from source.read(range(0, source.num_examples, every))[0]
    elif isinstance(source, TFDSSource):
        from vision.data.tfds_source import records

        for *_, data in records(source, _SAMPLE):
            yield data


def _bytes(image: str | bytes, channels: int, cache: str) -> int:
    """What one image takes; 0 if it cannot be read."""
    from PIL import Image

    try:
        if cache == 'raw':
            return os.path.getsize(image)
        head = image if isinstance(image, bytes) else _head(image)
        width, height = Image.open(io.BytesIO(head)).size
        return width * height * channels if width * height <= MAX_PIXELS else 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0


def _head(path: str) -> bytes:
    with open(path, 'rb') as file:
        return file.read(1 << 16)


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
