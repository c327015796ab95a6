"""Options of the vectors that are searched: whitening, views of the query, score normalization.

The fourth option, the pooling of feature maps, is part of the endpoint: `Classifier.embed`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from vision.core.errors import UserError, unknown
from vision.prediction.classifier import Classifier
from vision.preprocess.pictures import to_rgb

_ZOOM = 2**0.5  # ratio of neighbouring scales
_BACKGROUND = 3  # nearest images of the background whose scores are averaged
_BLOCK = 1024  # vectors that are compared with the background at once
_LEAST = 1e-6  # the least variance of a direction that is whitened, as a fraction of the largest

Pixels = np.ndarray  # uint8 [H, W, C]


class Whitening(NamedTuple):
    """Projection onto principal components, each scaled to variance 1 (Jégou and Chum 2012).

    "Negative evidences and co-occurrences in image retrieval: the benefit of PCA and whitening",
    section 4.

    Attributes:
      mean: float32 [D], subtracted from unit vectors.
      matrix: float32 [D, d].
    """

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the whitened vectors, float32 [n, d], of vectors [n, D]; not of unit length."""
        return (unit(vectors) - self.mean) @ self.matrix

    def to_bytes(self) -> bytes:
        """Returns the values as little-endian float32: the mean, then the rows of the matrix."""
        return b''.join(x.astype('<f4').tobytes() for x in self)

    @classmethod
    def from_bytes(cls, data: bytes, size: int) -> 'Whitening':
        """Reads what `to_bytes` returned, of a projection to `size` values."""
        values = np.frombuffer(data, '<f4').reshape(size + 1, -1)
        mean = values.ravel()[: values.shape[1]]
        return cls(mean, values.ravel()[values.shape[1] :].reshape(-1, size))


def fit_whitening(vectors: np.ndarray, size: int) -> Whitening:
    """Fits a whitening to the vectors of a collection.

    Args:
      vectors: float32 [n, D].
      size: d, the number of principal components to keep.

    Raises:
      UserError: the vectors vary in fewer directions.
    """
    rows = unit(vectors).astype(np.float64)
    mean = rows.mean(axis=0)
    variances, directions = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    usable = int((variances > max(_LEAST * variances[-1], _LEAST**2)).sum())
    if not 1 <= size <= usable:
        raise UserError(
            f'--whiten={size}: the vectors of {len(rows)} images vary in {usable} directions; '
            f'use a number from 1 to {usable}'
        )
    # The largest variances come last.
    matrix = directions[:, ::-1][:, :size] / np.sqrt(variances[::-1][:size])
    return Whitening(mean.astype(np.float32), matrix.astype(np.float32))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalises vectors [N, D] to unit length; vectors of zeros stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _original(image: Pixels) -> list[Pixels]:
    return [image]


def _flipped(image: Pixels) -> list[Pixels]:
    return [image, image[:, ::-1]]


def _zoomed(image: Pixels) -> list[Pixels]:
    """The image, its central half, and the image with a border that doubles its area."""
    height, width = image.shape[:2]
    top, left = (round(n * (1 - 1 / _ZOOM) / 2) for n in (height, width))
    wide, high = (round(n * (_ZOOM - 1) / 2) for n in (width, height))
    frame = np.empty((height + 2 * high, width + 2 * wide, image.shape[2]), np.uint8)
    frame[:] = np.rint(image.mean(axis=(0, 1))).astype(np.uint8)
    frame[high : high + height, wide : wide + width] = image
    return [image, image[top : height - top, left : width - left], frame]


def _all(image: Pixels) -> list[Pixels]:
    return [view for zoomed in _zoomed(image) for view in _flipped(zoomed)]


VIEWS: dict[str, Callable[[Pixels], list[Pixels]]] = {
    'one': _original,
    'flip': _flipped,
    'scales': _zoomed,
    'all': _all,
}


def views(name: str) -> Callable[[Pixels], list[Pixels]]:
    """Returns the function that makes the views of a query, whose vectors are averaged.

    Args:
      name: 'one', the image itself; 'flip', also mirrored; 'scales', also its central half and the
        image with a border in its mean colour that doubles its area; 'all', each scale with its
        mirror image.

    Raises:
      UserError: the name is unknown.
    """
    if name not in VIEWS:
        raise unknown('kind of views', name, VIEWS)
    return VIEWS[name]


def embed_views(
    classifier: Classifier,
    images: Iterable[Pixels],
    count: int,
    endpoint: str = 'features',
    kind: str = 'one',
) -> Iterator[np.ndarray]:
    """Yields the vectors of the views of each image, float32 [V, D].

    Args:
      classifier: computes the vectors.
      images: RGB or grey images.
      count: the number of images.
      endpoint: see `Classifier.embed`.
      kind: see `views`.
    """
    make, each = views(kind), number_of_views(kind)

    def prepared() -> Iterator[np.ndarray]:
        for image in images:
            for view in make(_with_channels(image, classifier.channels)):
                yield classifier.prepare(np.ascontiguousarray(view))

    for some in grouped(classifier.embed_prepared(prepared(), count * each, endpoint), each):
        yield from some


def number_of_views(kind: str) -> int:
    """Returns how many views an image has; see `views`."""
    return len(views(kind)(np.zeros((2, 2, 3), np.uint8)))


def grouped(batches: Iterable[np.ndarray], each: int) -> Iterator[np.ndarray]:
    """Turns batches of vectors, float32 [b, D], into batches of groups, float32 [n, each, D]."""
    waiting: np.ndarray | None = None
    for vectors in batches:
        waiting = vectors if waiting is None else np.concatenate([waiting, vectors])
        whole = len(waiting) // each * each
        if whole:
            yield waiting[:whole].reshape(-1, each, waiting.shape[1])
            waiting = waiting[whole:]


def background_scores(
    vectors: np.ndarray, background: np.ndarray, count: int = _BACKGROUND
) -> np.ndarray:
    """Returns what is subtracted from the scores of each query, float32 [n].

    The mean cosine of a query with its nearest images of a background set, of which it is no copy
    (Pizzi et al. 2022, "A self-supervised descriptor for image copy detection", section 5, with
    β = 1 and three images). The scores of a query that resembles many images become lower, and so
    comparable with those of other queries.

    Args:
      vectors: float32 [n, d].
      background: vectors of the background set, float32 [m, d].
      count: the number of nearest images.
    """
    known, count = unit(background).T, min(count, len(background))
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(vectors), _BLOCK):
        cosines = unit(vectors[start : start + _BLOCK]) @ known
        parts.append(np.sort(cosines, axis=1)[:, -count:].mean(axis=1))
    return np.concatenate(parts)


def _with_channels(image: Pixels, channels: int) -> Pixels:
    if image.shape[2] == channels:
        return image
    if channels == 1:
        from PIL import Image

        return np.asarray(Image.fromarray(image).convert('L'))[..., None]
    return to_rgb(image)
