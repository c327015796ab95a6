"""Indexes of images: built from folders, splits and shards, added to, and removed from."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.progress import phase, progress_bar, track
from vision.data.source import OF_SPLIT
from vision.prediction.classifier import Classifier
from vision.search import fields, milvus, shards
from vision.search.descriptions import Named, describe_images, full_name
from vision.search.descriptors import fit_whitening
from vision.search.fingerprint import made_by
from vision.search.index import Index, create
from vision.search.kinds import faiss
from vision.search.naming import AnyIndex, tell_changed
from vision.search.shards import Manifest
from vision.search.spool import Spool

_BATCH = 1024  # number of vectors that are added to the index at once
_WHITENED = 16384  # maximum number of vectors that a whitening is fitted to


def build(
    classifier: Classifier | None,
    images: Iterable[Named] | Manifest,
    endpoint: str = 'features',
    metric: str = 'cosine',
    kind: str = 'exact',
    own: fields.Own | None = None,
    place: str | None = None,
    whiten: int = 0,
) -> tuple[AnyIndex, dict[str, str]]:
    """Builds an index of images batch by batch, with a progress bar on a terminal.

    Args:
      classifier: computes the vectors; None for shards.
      images: the images to index, or the shards that `describe` has written (`open_shards`). The
        endpoint is then that of the shards.
      endpoint: see `Classifier.embed`.
      metric: 'cosine', for which vectors are normalised to length 1, or 'euclidean'.
      kind: 'exact', 'hnsw' or 'ivfpq', see `index.create`.
      own: user-defined fields of the images, from a CSV file.
      place: 'milvus:URI', see `milvus`; by default the index is built in memory.
      whiten: the number of principal components of whitened vectors, see
        `descriptors.fit_whitening`; 0 for no whitening.

    Returns:
      The index, and the reasons for images that could not be read, by name.

    Raises:
      UserError: faiss is not installed, the endpoint is unknown, the CSV file names none of the
        images, there are too few images for the kind or the whitening, or no image could be read.
    """
    # Report a missing library and settings that do not go together before the long work.
    if place is None:
        faiss()
    if whiten and (place is not None or metric != 'cosine'):
        raise UserError(f'--whiten={whiten} needs an index in a file and --metric=cosine')
    if isinstance(images, Manifest):
        about, size, count = images.made_by, images.size, shards.count(images)['images']
    else:
        assert classifier is not None
        images = list(images)
        count = sum(some.source.num_examples for some in images)
        about, size = made_by(classifier, endpoint), classifier.embedding_size(endpoint)
    if own:
        _check_names(own, images)
    batches = _batches(classifier, images, about['endpoint'], failed := dict[str, str]())
    if place is not None:
        made = milvus.create(place, about, size, metric, kind, own)
        try:
            _fill(made, batches, own)
            _check_some(made, failed)
        except BaseException:
            with contextlib.suppress(UserError):
                made.drop()
            raise
        return made, failed
    index = create(about, whiten or size, metric, kind, count)
    if needed := max(index.training_size, _WHITENED if whiten else 0):
        # Fit to a sample: the first shards, which are random samples, or some of all images.
        if isinstance(images, Manifest):
            first, gathered = [], 0
            while gathered < needed and (batch := next(batches, None)) is not None:
                first.append(batch)
                gathered += len(batch[1])
            sample = np.concatenate([np.empty((0, size), np.float32), *(x for _, x in first)])
            sample = np.random.default_rng(0).permutation(sample)[:needed]
            batches = itertools.chain(first, batches)
        else:
            spooled = Spool(batches, size)
            sample, batches = spooled.sample(needed), iter(spooled)
        if not len(sample):
            _check_some(index, failed)
        with phase('training the index'):
            if whiten:
                index.whitening = fit_whitening(sample[:_WHITENED], whiten)
            index.train(sample)
    _fill(index, batches, own)
    _check_some(index, failed)
    return index, failed


def _check_some(index: AnyIndex, failed: dict[str, str]) -> None:
    """Raises UserError if an index is empty."""
    if not len(index):
        name, reason = next(iter(failed.items()), ('the shards', 'they are empty'))
        raise UserError(f'no image could be read, for example {name}: {reason}')


def _fill(
    index: AnyIndex,
    batches: Iterable[tuple[Any, np.ndarray]],
    own: fields.Own | None,
) -> None:
    """Adds batches with user-defined fields to an index."""
    for table, vectors in batches:
        index.add(own.join(table) if own else table, vectors)


def _check_names(own: fields.Own, images: list[Named] | Manifest) -> None:
    """Raises UserError if a CSV file names none of the images, before they are described."""
    if isinstance(images, Manifest):
        tables: Iterator[Any] = (
            shards.read_shard(images, i, ['path']) for i in range(images.shards)
        )
    else:
        every = (full_name(some, i) for some in images for i in range(some.source.num_examples))
        names = list(map(os.fsencode, every))
        tables = iter([fields.pyarrow().table({'path': names})])
    for table in tables:
        own.join(table)
    own.check_used()


def add(
    classifier: Classifier | None,
    index: AnyIndex,
    images: Iterable[Named] | Manifest,
    replace: bool = False,
    own: fields.Own | None = None,
) -> dict[str, str]:
    """Adds images whose names are not in the index yet; their paths are stored as absolute paths.

    Args:
      classifier: as for `build`.
      index: the index.
      images: as for `build`.
      replace: describe also the images that are in the index, and replace those that can be read.
        Without `own` they keep their user-defined fields.
      own: as for `build`.

    Returns:
      The reasons for images that could not be read, by name.

    Raises:
      UserError: the shards were made by another classifier than the index, or the CSV file names
        none of the images or has fields of other types.
    """
    if isinstance(images, Manifest) and images.made_by != index.made_by:
        raise UserError(
            f'{images.folder} was described by another model than the index was built with; '
            'build an index of it'
        )
    if own:
        # Check the file before the long work and before the first change.
        images = images if isinstance(images, Manifest) else list(images)
        _check_names(own, images)
        index.check_fields(own.join(fields.table([])))
    failed, again, endpoint = dict[str, str](), set[str](), index.made_by['endpoint']
    if replace:
        batches = _batches(classifier, images, endpoint, failed)
        if own is None:
            batches = index.with_own(batches)
        # Remove all replaced images of an index file at once, because removal takes a pass over the
        # file. Milvus replaces rows of the same path when they are added.
        if isinstance(index, Index):
            every = list(batches)
            index.remove({name for table, _ in every for name in fields.names(table)})
            batches = iter(every)
    else:
        known = {*index.names}
        batches = _batches(classifier, images, endpoint, failed, known, again)
    _fill(index, batches, own)
    # Warn of files that have changed since an earlier run indexed them.
    tell_changed(index, again)
    return failed


def _batches(
    classifier: Classifier | None,
    images: Iterable[Named] | Manifest,
    endpoint: str,
    failed: dict[str, str],
    known: frozenset[str] | set[str] = frozenset(),
    again: set[str] | None = None,
) -> Iterator[tuple[Any, np.ndarray]]:
    """Describes images, each name once, with a progress bar.

    Args:
      classifier: None for shards.
      images: the images.
      endpoint: see `Classifier.embed`.
      failed: filled with the reasons for images that cannot be read, by name.
      known: names to leave out.
      again: filled with the known names among the images.

    Yields:
      Tables of n images (`fields.table`), and their vectors, float32 [n, D].
    """
    tables, parts, seen = list[Any](), list[np.ndarray](), {*known}
    for table, errors, vectors in _described(classifier, images, endpoint, known, again):
        rows = []
        for row, (name, error) in enumerate(zip(fields.names(table), errors, strict=True)):
            if error is not None:
                failed[name] = error
            elif name not in seen:
                seen.add(name)
                rows.append(row)
            elif name in known and again is not None:
                again.add(name)
        # Yield full batches: faiss is slow with single vectors.
        tables.append(table.take(np.array(rows, np.int64)))
        parts.append(vectors[rows])
        if sum(map(len, parts)) >= _BATCH:
            yield fields.join(*tables), np.concatenate(parts)
            tables, parts = [], []
    if tables:
        yield fields.join(*tables), np.concatenate(parts)


def _described(
    classifier: Classifier | None,
    images: Iterable[Named] | Manifest,
    endpoint: str,
    known: frozenset[str] | set[str],
    again: set[str] | None,
) -> Iterator[tuple[Any, list[str | None], np.ndarray]]:
    """Yields tables of images, their errors or None, and vectors; see `_batches`."""
    if isinstance(images, Manifest):
        for shard, vectors in track(shards.read_shards(images), images.shards, 'reading shards'):
            yield fields.of_shard(shard), shard['error'].to_pylist(), vectors
        return
    assert classifier is not None
    for some in images:
        ids = None
        if known and again is not None and some.source.indexed:
            # Do not read the images that are left out.
            names = [full_name(some, i) for i in range(some.source.num_examples)]
            again.update(known.intersection(names))
            ids = [i for i, name in enumerate(names) if name not in known]
        with progress_bar() as start:
            move = start('describing', some.source.num_examples if ids is None else len(ids))
            done = 0
            for rows, vectors in describe_images(classifier, some, endpoint, ids=ids):
                yield fields.table(rows), [row.error for row in rows], vectors
                done += len(rows)
                move(done)


def remove(index: AnyIndex, words: Iterable[str]) -> int:
    """Removes images from an index: files, which need not exist any more, folders, and 'SPLIT:ID'.

    Returns:
      The number of images.

    Raises:
      UserError: a word names no image of the index.
    """
    names, chosen = index.names, set[str]()
    for word in words:
        path = word if OF_SPLIT.fullmatch(word) else os.path.abspath(os.path.expanduser(word))
        found = {n for n in names if n == path or n.startswith(path.rstrip(os.sep) + os.sep)}
        if not found:
            raise UserError(f'{word} is not in the index')
        chosen |= found
    return index.remove(chosen)
