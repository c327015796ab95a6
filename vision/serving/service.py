"""Service of a server: a classifier whose images are computed in batches, and an index."""

import io
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision.core.errors import UserError
from vision.core.text import AnyPath, as_path
from vision.prediction.classifier import Classifier
from vision.preprocess.decode import read
from vision.search import index as index_lib
from vision.search.naming import AnyIndex, in_milvus, open_index
from vision.serving.asked import Refused, prepared
from vision.serving.batching import Batcher
from vision.serving.metrics import Metrics

# The probabilities [K] and the vector [D] of an image; K is 0 without a classifier.
Answer = tuple[np.ndarray, np.ndarray]
_NO_CLASSES = np.empty(0, np.float32)


class _Image(NamedTuple):
    data: bytes
    prepare: Callable[[bytes], np.ndarray]


class Service:
    """Classifies, embeds and searches for encoded images; thread-safe.

    Attributes:
      classifier: the model.
      collection: the index that is searched, or None.
      endpoint: the output that is the vector of an image: that of the index, or 'features'.
      batcher: computes the images.
      metrics: counts the batches.
      classifies: whether the model has a classifier.
    """

    def __init__(
        self,
        classifier: Classifier,
        collection: 'Collection | None' = None,
        max_batch: int = 32,
        max_wait: float = 0.005,
        max_queue: int = 256,
        max_pixels: int = 50_000_000,
        classifies: bool = True,
    ):
        """Starts the threads.

        Args:
          classifier: the model.
          collection: the index to search.
          max_batch: see `Batcher`.
          max_wait: see `Batcher`.
          max_queue: see `Batcher`.
          max_pixels: the largest number of pixels of an image.
          classifies: whether the model has a classifier.
        """
        self.classifier, self.collection = classifier, collection
        self.classifies = classifies and classifier.classifies
        self.endpoint = collection.endpoint if collection else 'features'
        self.metrics = Metrics()
        self._max_batch, self._max_pixels = max_batch, max_pixels
        self.batcher: Batcher[_Image, np.ndarray, Answer] = Batcher(
            lambda image: prepared(image.data, image.prepare, self._max_pixels),
            self._compute,
            max_batch,
            max_wait,
            max_queue,
            self.metrics.computed,
        )

    def warm_up(self) -> None:
        """Compiles the model for all sizes of a batch, and decodes and searches once."""
        for kind in ('JPEG', 'PNG'):
            image = self.classifier.prepare_encoded(_blank(kind))
        size = 1
        while size <= self._max_batch:
            ((_, vector), *_) = self._compute([image] * size)
            size *= 2
        if self.collection is not None:
            self._prepare_decoded(_blank('PNG'))
            self.collection.nearest(vector, 1)

    def submit(self, data: bytes, search: bool = False) -> 'Future[Answer]':
        """Returns the future answer for an encoded image.

        The future has the exception `Refused` for an image that cannot be read.

        Args:
          data: the encoded image.
          search: decode as `vision.search.query` does, which differs for grey models and JPEGs in
            colour, by the rounding of grey values.

        Raises:
          Full: see `Batcher.submit`.
        """
        prepare = self._prepare_decoded if search else self.classifier.prepare_encoded
        return self.batcher.submit(_Image(data, prepare))

    def close(self) -> None:
        """Answers what was submitted, and ends the threads."""
        self.batcher.close()

    def _prepare_decoded(self, data: bytes) -> np.ndarray:
        return self.classifier.prepare(read(data, self.classifier.channels))

    def _compute(self, images: list[np.ndarray]) -> list[Answer]:
        if not self.classifies:
            vectors = self.classifier.embed_prepared(images, len(images), self.endpoint)
            return [(_NO_CLASSES, vector) for batch in vectors for vector in batch]
        batches = self.classifier.answer_prepared(images, len(images), self.endpoint)
        return [row for batch in batches for row in zip(*batch, strict=True)]


class Collection:
    """An index that is read again when another process has written a new version of its file.

    Attributes:
      endpoint: the output of the model that the vectors of the index are.
    """

    def __init__(self, place: AnyPath, classifier: Classifier):
        """Loads an index.

        Args:
          place: the file of an index, or 'milvus:URI'.
          classifier: the model that must have made it.

        Raises:
          UserError: the index cannot be loaded, or another model made it.
        """
        self._classifier, self._loading = classifier, threading.Lock()
        self._path = None if in_milvus(place) else as_path(place)
        self._seen = _stamp(self._path)
        self._index: AnyIndex = open_index(place, read_only=True)
        self._index.check(classifier)
        self.endpoint: str = self._index.made_by['endpoint']

    def __len__(self) -> int:
        return len(self._index)

    def nearest(
        self, vector: np.ndarray, top_k: int, where: str | None = None
    ) -> list[dict[str, Any]]:
        """Returns the neighbours of a vector, as `vision.search.query` yields them.

        Args:
          vector: float32 [D].
          top_k: the number of neighbours.
          where: a condition that they fulfil.

        Raises:
          UserError: the condition is not valid.
        """
        self._refresh()
        (found,) = self._index.nearest(vector[None], top_k, where)
        return [{'path': name, 'score': score} for name, score in found]

    def _refresh(self) -> None:
        """Loads the index again if its file has changed; the old one is kept if that fails."""
        stamp = _stamp(self._path)
        if stamp in (None, self._seen) or not self._loading.acquire(blocking=False):
            return
        # This thread loads the new index, all others go on with the old one.
        try:
            assert self._path is not None
            made = index_lib.load(self._path, read_only=True)
            made.check(self._classifier, self.endpoint)
            self._index = made
        except UserError as e:
            logging.warning('the old index is kept: %s', e)
        finally:
            self._seen = stamp
            self._loading.release()


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    """Returns what changes when a file is replaced; None if there is no file."""
    try:
        about = os.stat(path) if path else None
    except OSError:
        return None
    return (about.st_ino, about.st_size, about.st_mtime_ns) if about else None


def finite(values: np.ndarray, what: str) -> np.ndarray:
    """Returns the values; raises Refused with 500 if they are not finite."""
    if not np.isfinite(values).all():
        raise Refused(500, f"the model's {what} are not finite")
    return values


def _blank(kind: str) -> bytes:
    """Returns a blank image file."""
    from PIL import Image

    file = io.BytesIO()
    Image.new('RGB', (640, 480)).save(file, kind)
    return file.getvalue()
