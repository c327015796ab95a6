"""Single examples as people look at them: any image of a source, and small ones for a page."""

import base64
import io
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from vision.data.source import ArraySource, FileSource, RecordSource, Source, TFDSSource
from vision.preprocess.decode import BadImage, read

THUMBNAIL = 160  # pixels of the longer side


def to_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] → [H, W, 3]: grey is repeated, channels beyond the third are left out."""
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> Any:
    """A PIL image of uint8 [H, W, C], its longer side at most `side` pixels; never enlarged."""
    from PIL import Image

    picture = Image.fromarray(to_rgb(image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def data_uri(image: np.ndarray, side: int = THUMBNAIL) -> str:
    """The thumbnail as a `data:` URI that a page can hold: PNG if tiny, JPEG if a photo."""
    picture, buffer = thumbnail(image, side), io.BytesIO()
    kind = 'png' if picture.width * picture.height <= 64 * 64 else 'jpeg'
    picture.save(buffer, kind, quality=80, optimize=True)
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'


def examples(source: Source, ids: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Reads some examples of a split; what is not there or cannot be read is left out.

    Args:
      source: the split.
      ids: of the examples. Records that can only be read in sequence are read through for them,
        undecoded.

    Yields:
      Each id and its image, uint8 [H, W, C], as it is in the source.
    """
    ids = {i for i in ids if 0 <= i < source.num_examples}
    if isinstance(source, ArraySource):
        yield from ((i, source.images[i]) for i in ids)
        return
    for example, data in _encoded(source, ids):
        try:
            yield example, read(data() if callable(data) else data)
        except BadImage:
            continue


def _encoded(source: FileSource | RecordSource | TFDSSource, ids: set[int]) -> Iterator:
    """Yields ids and the encoded image, or what gives it."""
    if isinstance(source, FileSource):
        from vision.preprocess.decode import read_file

        yield from ((i, lambda i=i: read_file(source.paths[i])) for i in ids)
        return
    if isinstance(source, RecordSource):
        yield from ((i, source.read([i])[0][0]) for i in ids)
        return
    if not ids:
        return
    from vision.data import tfds_source

    left = len(ids)
    for example, _, _, data in tfds_source.records(source):
        if int(example) in ids:
            yield int(example), data
            left -= 1
            if not left:
                return
