"""Search by image: queries of an index, and the functions that name images and build indexes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError, at_least_one
from vision.prediction import given
from vision.prediction.classifier import Classifier
from vision.search.building import add as add
from vision.search.building import build as build
from vision.search.building import remove as remove
from vision.search.descriptions import Box, Named, describe_images
from vision.search.descriptors import background_scores
from vision.search.index import Index
from vision.search.naming import AnyIndex as AnyIndex
from vision.search.naming import named as named
from vision.search.naming import tell_changed
from vision.search.naming import whole_split as whole_split


def query(
    classifier: Classifier,
    index: AnyIndex,
    images: Iterable[Named] | Any,
    top_k: int = 10,
    where: str | None = None,
    box: Box | None = None,
    views: str = 'one',
    background: Index | None = None,
) -> Iterator[dict[str, Any]]:
    """Finds the nearest images in the index for each query image.

    Args:
      classifier: the one that made the index.
      index: the index.
      images: the query images: what `named` returns, or one or several images in any form that
        `Classifier` takes (paths, encoded bytes, `PIL.Image`s, uint8 arrays). Those without a path
        are named 'image NUMBER'.
      top_k: the number of neighbours.
      where: a condition that neighbours fulfil, see `fields.choose`.
      box: part of each query image to look for.
      views: the views of a query whose vectors are averaged, see `descriptors.views`.
      background: an index of images that are not searched for, with which scores are normalized;
        see `descriptors.background_scores`.

    Yields:
      For each image `{'path', 'neighbours': [{'path', 'score'}, …]}`, the nearest first, and
      'error' if it could not be read. The score is the cosine or the Euclidean distance.

    Raises:
      UserError: the index or the background was made with another model, endpoint or preprocessing;
        the condition is not valid; or the box is not within an image.
    """
    at_least_one('top_k', top_k)
    index.check(classifier)
    less = background_of(index, background)
    endpoint, found = index.made_by['endpoint'], set[str]()
    # Describe the query images in batches, and search for one image after another.
    for some in _asked(classifier, images):
        paths = iter(some.names)  # paths in the user's form, not absolute
        for rows, vectors in describe_images(classifier, some, endpoint, box=box, views=views):
            for row, vector, path in zip(rows, vectors, paths, strict=False):
                if row.error is not None:
                    yield {'path': path, 'neighbours': [], 'error': row.error}
                    continue
                (nearest,) = index.nearest(vector[None], top_k, where)
                bias = float(less(vector[None])[0])
                neighbours = [{'path': name, 'score': score - bias} for name, score in nearest]
                found.update(name for name, _ in nearest)
                yield {'path': path, 'neighbours': neighbours}
    # Warn of neighbours whose files are missing or have changed.
    tell_changed(index, found)


def background_of(index: AnyIndex, background: Index | None) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function of vectors [n, D] that gives what is subtracted from their scores."""
    if background is None:
        return lambda vectors: np.zeros(len(vectors))
    if not isinstance(index, Index) or index.metric != 'cosine' or background.metric != 'cosine':
        raise UserError('--background needs indexes in files, of --metric=cosine')
    if background.made_by != index.made_by or background.whitening is not None:
        raise UserError(
            '--background: build it with the model, preprocessing and endpoint of the index, and '
            'without --whiten'
        )
    known = index.prepared(background.vectors())
    return lambda vectors: background_scores(index.prepared(vectors), known)


def _asked(classifier: Classifier, images: Any) -> list[Named]:
    """Returns images that `Classifier` takes as sources with names; `Named` ones stay as they are."""
    if isinstance(images, Iterator | list | tuple) and not isinstance(images, Named):
        images = list(images)
        if all(isinstance(some, Named) for some in images):
            return images
    if isinstance(images, Named):
        return [images]
    source, _ = given.gather(images, classifier.channels, classifier.run.image_shape)
    if isinstance(source, given.Given):
        return [Named(source, [source.name_of(i) for i in range(source.num_examples)])]
    return [Named(source, source.paths or [f'image {i}' for i in range(source.num_examples)])]
