"""Index of image vectors: faiss finds the nearest vectors, and a table has the images they belong to.

`kinds` makes and searches the faiss index, `index_file` writes and reads the file, and `fields` has
the table.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vision.core.errors import UserError, at_least_one
from vision.core.text import AnyPath, as_path
from vision.prediction.classifier import Classifier
from vision.search import fields, fingerprint, index_file, kinds
from vision.search.descriptors import Whitening
from vision.search.descriptors import unit as unit
from vision.search.kinds import KINDS as KINDS
from vision.search.kinds import METRICS as METRICS

_NONE = None, np.empty(0)  # no condition, and no images
_DIGITS = 6  # decimal places of a cosine, as many as float32 has


@dataclasses.dataclass
class Index:
    """A searchable index of image vectors.

    Attributes:
      made_by: `fingerprint.made_by` of the classifier that computed the vectors.
      metric: 'cosine' (higher is nearer) or 'euclidean' (lower is nearer).
      table: the images in the order of the vectors, see `fields.table`.
      index: the faiss index.
      read: the file that the index was loaded from and the file's version at that time, or None.
      whitening: applied to the vectors that are added and searched for; None for none. Stored
        vectors are whitened.
      size: the length of a stored vector. Vectors of the faiss index may be longer, see
        `kinds.make`.
    """

    made_by: dict[str, str]
    metric: str
    table: Any
    index: Any
    read: tuple[Path, index_file.Version] | None = None
    whitening: Whitening | None = None
    size: int = 0
    _chosen: tuple[str | None, np.ndarray] = _NONE

    def __post_init__(self):
        self.size = self.size or self.index.d

    def __len__(self) -> int:
        return len(self.table)

    @property
    def names(self) -> list[str]:
        """The images' names in the order of the vectors: paths, or 'SPLIT:ID' of the run's data."""
        return fields.names(self.table)

    def name(self, position: int) -> str:
        """Returns the name of one image."""
        return os.fsdecode(self.table['path'][position].as_py())

    @property
    def kind(self) -> str:
        """The kind of the index: 'exact', 'hnsw' or 'ivfpq'."""
        return kinds.kind_of(self.index)

    @property
    def whiten(self) -> int:
        """The number of components of whitened vectors; 0 if they are not whitened."""
        return 0 if self.whitening is None else self.size

    def train(self, vectors: np.ndarray) -> None:
        """Fits the lists and codes of an IVF-PQ index to vectors, float32 [n, D].

        They should be a random sample of `training_size` images. Other kinds need no training.

        Raises:
          UserError: there are too few vectors.
        """
        if not self.index.is_trained:
            if len(vectors) < kinds.LEAST:
                raise UserError(
                    f'--kind=ivfpq needs at least {kinds.LEAST:,} images, {len(vectors):,} could be '
                    'read; use --kind=exact'
                )
            self.index.train(self.prepared(vectors))

    @property
    def training_size(self) -> int:
        """The number of vectors that `train` should get; 0 if the index is trained."""
        return kinds.training_size(self.index)

    def add(self, images: Any, vectors: np.ndarray) -> None:
        """Adds images with their vectors.

        Args:
          images: n names, or a table of n rows (`fields.table`).
          vectors: float32 [n, D].

        Raises:
          UserError: the vectors have another length, or values that are not finite.
        """
        prepared = self.prepared(vectors)
        # One NaN makes the other images of an HNSW graph unreachable (faiss pull request 5219).
        if not np.isfinite(prepared).all():
            raise UserError('vectors with values that are not finite cannot be added to an index')
        table = images if hasattr(images, 'schema') else fields.table(images)
        if len(prepared):
            joined = fields.join(self.table, table)
            self.index.add(prepared)
            self.table, self._chosen = joined, _NONE

    def check_fields(self, images: Any) -> None:
        """Raises UserError unless the fields of a table of images have the types of the index."""
        fields.join(self.table.slice(0, 0), images)

    def with_own(
        self, batches: Iterable[tuple[Any, np.ndarray]]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Adds to tables of images the fields that only the index has for these images."""
        rows = {name: i for i, name in enumerate(self.names)}
        for table, vectors in batches:
            found = [rows.get(name) for name in fields.names(table)]
            other = [name for name in self.table.column_names if name not in table.column_names]
            picked = self.table.select(other).take(fields.pyarrow().array(found, 'int64'))
            for name in other:
                table = table.append_column(name, picked[name])
            yield table, vectors

    def remove(self, names: Collection[str]) -> int:
        """Removes images by their names; returns the number of removed images.

        The graph of an HNSW index is rebuilt from the remaining images.
        """
        names = {*names}
        kept = np.array([name not in names for name in self.names], bool)
        removed = len(kept) - int(kept.sum())
        if removed:
            kinds.keep(self.index, kept)
            self.table, self._chosen = self.table.take(np.flatnonzero(kept)), _NONE
        return removed

    def search(
        self, vectors: np.ndarray, k: int, chosen: np.ndarray | None = None
    ) -> list[list[tuple[int, float]]]:
        """Returns up to k nearest images of each vector, as (position, score), nearest first.

        Args:
          vectors: float32 [n, D].
          k: the number of neighbours.
          chosen: bool [N], the images to search, see `choose`; all by default. All of them are
            compared with the vector, even in an approximate index, because an approximate search
            could miss a few chosen images among many others.

        Raises:
          UserError: k is not an integer of at least 1, or the vectors have another length.
        """
        k = min(at_least_one('k', k), max(1, len(self.table)))
        scores, rows = kinds.find(self.index, self.prepared(vectors), k, chosen)
        scores = scores.astype(np.float64)
        if self.metric == 'euclidean':
            scores = np.sqrt(np.maximum(scores, 0))  # faiss returns squared distances
        else:
            # Remove rounding errors of float32: a vector's cosine with itself is 1, not 1.0000001.
            scores = np.clip(np.round(scores, _DIGITS), -1, 1)
        return [
            [(i, s) for i, s in zip(*pair, strict=True) if i >= 0]
            for pair in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def nearest(
        self, vectors: np.ndarray, k: int, where: str | None = None
    ) -> list[list[tuple[str, float]]]:
        """Returns up to k nearest images of each vector, as (name, score), nearest first.

        Args:
          vectors: float32 [n, D].
          k: the number of neighbours.
          where: a condition that the images fulfil, see `fields.choose`.

        Raises:
          UserError: as for `search`, or the condition is not valid.
        """
        found = self.search(vectors, k, self.choose(where) if where else None)
        return [[(self.name(i), score) for i, score in row] for row in found]

    def choose(self, where: str) -> np.ndarray:
        """Returns the images that fulfil a condition, bool [N]; see `fields.choose`."""
        # Keep the result, since many queries have the same condition. The pair is read and replaced
        # as a whole, because another thread may store the images of its condition.
        known = self._chosen
        if known[0] != where:
            known = self._chosen = where, fields.choose(self.table, where)
        return known[1]

    def vectors(self) -> np.ndarray:
        """Returns the stored vectors, float32 [N, D]; for cosine they have unit length.

        Those of an IVF-PQ index are approximate.
        """
        return self.index.reconstruct_n(0, len(self.table))[:, : self.size]

    @property
    def approximate(self) -> bool:
        """True if the search is approximate."""
        return self.kind != 'exact'

    def recall(self, k: int = 10) -> float | None:
        """Returns the recall of an approximate index on its own images; see `kinds.recall`."""
        return kinds.recall(self.index, self.metric, k)

    def check(self, classifier: Classifier, endpoint: str | None = None) -> None:
        """Raises UserError unless the classifier made the vectors of this index.

        Args:
          classifier: the classifier to compare.
          endpoint: the endpoint in use; by default that of the index.
        """
        fingerprint.check(self.made_by, classifier, endpoint)

    def save(self, path: AnyPath) -> None:
        """Writes the index file atomically; processes that have opened the old file can read on.

        Raises:
          UserError: the file cannot be written, or another process has written it since this index
            was loaded from it.
        """
        path = as_path(path)
        about = {'made_by': self.made_by, 'metric': self.metric, 'size': self.size}
        whitening = self.whitening.to_bytes() if self.whitening else None
        content = index_file.Content(self.index, self.table, about, whitening)
        before = self.read[1] if self.read and self.read[0] == path else None
        self.read = path, index_file.write(path, content, before)

    def prepared(self, vectors: np.ndarray) -> np.ndarray:
        """Returns vectors as the index stores them: whitened, for cosine of unit length.

        Raises:
          UserError: they have another length than those that the index was made for.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        size = self.size if self.whitening is None else len(self.whitening.mean)
        if vectors.shape[1:] != (size,):
            raise UserError(f'vectors of {list(vectors.shape)}; the index has [n, {size}]')
        if self.whitening is not None:
            vectors = self.whitening(vectors)
        vectors = unit(vectors) if self.metric == 'cosine' else vectors
        if more := self.index.d - self.size:
            vectors = np.pad(vectors, ((0, 0), (0, more)))
        return vectors


def create(
    made_by: dict[str, str],
    size: int,
    metric: str = 'cosine',
    kind: str = 'exact',
    count: int = 0,
) -> Index:
    """Creates an empty index.

    Args:
      made_by: `fingerprint.made_by` of the classifier.
      size: D, the length of the vectors.
      metric: 'cosine' or 'euclidean'.
      kind: 'exact', 'hnsw' or 'ivfpq', see `kinds.make`.
      count: the number of images that an IVF-PQ index is made for.

    Raises:
      UserError: the metric or kind is unknown, or there are too few images for the kind.
    """
    made = kinds.make(size, metric, kind, count)
    return Index(made_by, metric, fields.table([]), made, size=size)


def check_replaceable(path: AnyPath) -> None:
    """Raises UserError if a file that is not an index would be overwritten."""
    index_file.check_replaceable(as_path(path))


def load(path: AnyPath, read_only: bool = False) -> Index:
    """Loads an index from a file.

    Args:
      path: the file.
      read_only: map the file instead of reading it; nothing can be added or removed. See
        `index_file` for what is then verified.

    Raises:
      UserError: the file does not exist, is not an index of this project, or is damaged.
    """
    path = as_path(path)
    (index, table, about, whitening), version = index_file.read(path, read_only)
    size = about.get('size', index.d)
    with index_file.in_a_line(path):
        if not 0 < size <= index.d:
            raise ValueError(f'vectors of {size} values')
        made = None if whitening is None else Whitening.from_bytes(whitening, size)
        return Index(about['made_by'], about['metric'], table, index, (path, version), made, size)


def verify(path: AnyPath) -> int:
    """Verifies every byte of an index file, and returns the number of images.

    Raises:
      UserError: the file does not exist, is not an index of this project, or is damaged.
    """
    index_file.verify(as_path(path))
    return len(load(path, read_only=True))
