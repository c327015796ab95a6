"""Near copies and outliers of a data set, by thumbnails or by a model's features."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vision.core.progress import track
from vision.prediction import pictures

MOST = 20_000  # images that are compared, each with all others; of larger sets an even sample
PAIRS = 10_000  # maximum number of pairs of near copies that are listed
_ROWS = 1024  # rows of one block of the matrix of similarities
_COSINE = 0.95  # the least cosine of the features of near copies
_RANK = 3  # an image is as far from the others as from its third nearest one
# An outlier is farther than the upper quartile by this multiple of the quartiles' distance (Tukey
# 1977, "Exploratory data analysis": far out), among so many images at least.
_FAR, _FEWEST = 3.0, 20


class Compared(NamedTuple):
    """An image to compare.

    Attributes:
      name: its name.
      split: its split.
      digest: of its content; images with the same content are exact copies, not near ones.
      thumbnail: `pictures.contrast`.
    """

    name: str
    split: str
    digest: bytes
    thumbnail: np.ndarray


def compare(
    images: Sequence[Compared], vectors: np.ndarray | None = None
) -> tuple[list[list[Any]], dict[str, dict[str, float]]]:
    """Compares each image with all others.

    Args:
      images: N images.
      vectors: features of the images, float32 [N, D]; the thumbnails by default.

    Returns:
      The near copies: [[name, name, correlation], …], images whose thumbnails correlate by 0.98 or
      more, also mirrored, and whose features are near; pairs of two splits first, then the highest
      correlation; at most `PAIRS`. And the outliers of each split, the farthest first: {split: {name: distance}},
      where the distance is 1 − cosine to the third nearest image.
    """
    if not images:
        return [], {}
    thumbnails = np.stack([image.thumbnail for image in images]).astype(np.float32)
    side = pictures.SIDE
    mirrored = thumbnails.reshape(-1, side, side)[..., ::-1].reshape(thumbnails.shape)
    if vectors is not None:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths > 0, lengths, 1)
    pairs, distances, count = np.empty((0, 3)), list[np.ndarray](), len(images)
    _, digests = np.unique([image.digest.hex() for image in images], return_inverse=True)
    _, splits = np.unique([image.split for image in images], return_inverse=True)
    for start in track(range(0, count, _ROWS), -(-count // _ROWS), 'comparing'):
        rows = slice(start, start + _ROWS)
        alike = thumbnails[rows] @ thumbnails.T
        alike = np.maximum(alike, thumbnails[rows] @ mirrored.T)
        cosines = alike.copy() if vectors is None else vectors[rows] @ vectors.T
        both = alike >= pictures.CORRELATION
        if vectors is not None:
            both &= cosines >= _COSINE
        # Each pair once, and only the first pairs of all: frames of a video are all alike.
        ones, others = np.nonzero(np.triu(both, start + 1) & (digests[rows, None] != digests))
        scores = np.minimum(alike[ones, others], 1)
        pairs = np.concatenate([pairs, np.stack([ones + start, others, scores], 1)])
        within = splits[pairs[:, 0].astype(int)] == splits[pairs[:, 1].astype(int)]
        pairs = pairs[np.lexsort([-pairs[:, 2], within])[:PAIRS]]
        np.fill_diagonal(cosines[:, rows], -1)
        rank = min(_RANK, count) - 1
        distances.append(1 - -np.partition(-cosines, rank, axis=1)[:, rank])
    near = [[images[int(i)].name, images[int(j)].name, float(s)] for i, j, s in pairs]
    return near, _outliers(images, np.concatenate(distances))


def _outliers(images: Sequence[Compared], distances: np.ndarray) -> dict[str, dict[str, float]]:
    """Returns the images of each split that are far out; blank ones are left out."""
    there = np.array([image.thumbnail.any() for image in images])
    if there.sum() < _FEWEST:
        return {}
    low, high = np.quantile(distances[there], (0.25, 0.75))
    found: dict[str, dict[str, float]] = {}
    for i in np.argsort(-distances, kind='stable').tolist():
        if there[i] and distances[i] > high + _FAR * (high - low):
            found.setdefault(images[i].split, {})[images[i].name] = float(distances[i])
    return found
