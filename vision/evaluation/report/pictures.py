"""The pictures of single examples, small, as data URIs."""

import base64
import io
from collections.abc import Iterable, Iterator

import numpy as np

from vision.data.source import ArraySource, FileSource, RecordSource, Source, TFDSSource
from vision.preprocess.decode import BadImage, read
from vision.preprocess.pipeline import read_file

SIZE = 112  # pixels of the longer side of a large image; a small one stays as it is


def thumbnails(source: Source, ids: Iterable[int]) -> dict[int, str]:
    """Reads some examples of a split: id → data URI. One that cannot be read is left out.

    Args:
      source: the split.
      ids: of the examples. A TFDS data set is read through for them, undecoded.
    """
    return {example: _data_uri(image) for example, image in _images(source, set(ids))}


def _images(source: Source, ids: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields ids and uint8 [H, W, C]."""
    if isinstance(source, ArraySource):
        yield from ((i, source.images[i]) for i in ids)
    elif ids:
        for example, data in _encoded(source, ids):
            try:
                yield example, read(data() if callable(data) else data)
            except BadImage:
                continue


def _encoded(source: FileSource | RecordSource | TFDSSource, ids: set[int]) -> Iterator:
    """Yields ids and what gives the encoded image."""
    if isinstance(source, FileSource):
        yield from ((i, lambda i=i: read_file(source.paths[i])) for i in ids)
        return
    if isinstance(source, RecordSource):
        yield from ((i, lambda i=i: source.read([i])[0][0]) for i in ids)
        return
    from vision.data import tfds_source

    left = len(ids)
    for example, _, _, data in tfds_source.eval_records(source, 0, 1).as_numpy_iterator():
        if int(example) in ids:
            yield int(example), data
            left -= 1
            if not left:
                return


def _data_uri(image: np.ndarray) -> str:
    from PIL import Image

    channels = 3 if image.shape[-1] >= 3 else 1
    pixels = image[..., :3] if channels == 3 else image[..., 0]
    picture = Image.fromarray(pixels)
    small = max(picture.size) <= SIZE
    if not small:
        picture.thumbnail((SIZE, SIZE))
    buffer = io.BytesIO()
    kind = 'png' if small and picture.width * picture.height <= 64 * 64 else 'jpeg'
    picture.save(buffer, kind, quality=80, optimize=True)
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'
