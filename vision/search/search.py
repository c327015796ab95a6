"""Reverse image search: indexing of folders and splits, queries, and pages of results."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from vision.core.errors import UserError, at_least_one
from vision.core.progress import phase, progress_bar, track
from vision.core.text import PICTURES, AnyPath, as_list, below, common_root, output_file
from vision.data import registry as data
from vision.data.source import (
    FileSource,
    Source,
    label_text,
    read_each,
)
from vision.evaluation.run import Run
from vision.prediction import feed, pages
from vision.prediction.classifier import Classifier
from vision.preprocess.inputs import examples
from vision.preprocess.pictures import Picture, draw_grid
from vision.search import fields, milvus, shards
from vision.search.descriptions import OF_SPLIT, Named, describe_images, full_name
from vision.search.fingerprint import made_by
from vision.search.index import Index, create, faiss
from vision.search.milvus import MilvusIndex
from vision.search.shards import Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AnyIndex = Index | MilvusIndex
_BATCH = 1024  # vectors that are added to the index at once


def whole_split(run: Run, split: str) -> Named:
    """Returns all images of a split of the run's data.

    Raises:
      UserError: the split does not exist, or the run has no data.
    """
    source = own_split(run, split)
    return Named(source, source.paths or [f'{split}:{i}' for i in range(source.num_examples)])


def own_split(run: Run, split: str) -> Source:
    """Returns a split of the run's data; raises UserError if there is no such split or no data."""
    if not (run.path / 'dataset.json').is_file():
        raise UserError(f'{run.path} has weights only, no data: name files or folders, not a split')
    return data.load(run.config.data, split)


def named(run: Run, words: AnyPath | Iterable[AnyPath]) -> list[Named]:
    """Finds the images that a user names on the command line.

    Args:
      run: the run whose data 'SPLIT:ID' refers to.
      words: one or several files, folders, globs, or examples such as 'test:12'.

    Returns:
      The images in the order of the words. Consecutive files, folders and globs share one source.

    Raises:
      UserError: a folder or glob has no images, or an example does not exist.
    """
    # Files wait in a list until an example of a split interrupts them.
    found: list[Named] = []
    waiting: list[str] = []

    def flush() -> None:
        if waiting:
            source = feed.files(waiting)
            found.append(Named(source, source.paths))
            waiting.clear()

    for word in as_list(words):
        match = OF_SPLIT.fullmatch(word)
        if match is None or os.path.exists(word):
            waiting.append(word)
        else:
            flush()
            found.append(_one_example(run, word, match[1], int(match[2])))
    flush()
    return found


def _one_example(run: Run, word: str, split: str, index: int) -> Named:
    # Make a source of this one example, so that the rest of the split need not be read.
    source = own_split(run, split)
    if index >= source.num_examples:
        raise UserError(f'{word}: the split has examples 0 … {source.num_examples - 1}')
    one = source.subset([index])
    return Named(one, one.paths or [word])


def build(
    classifier: Classifier | None,
    images: Iterable[Named] | Manifest,
    endpoint: str = 'features',
    metric: str = 'cosine',
    kind: str = 'exact',
    own: fields.Own | None = None,
    place: str | None = None,
) -> tuple[AnyIndex, dict[str, str]]:
    """Builds an index of images batch by batch, with a progress bar on a terminal.

    Args:
      classifier: computes the vectors; None for shards.
      images: the images to index, or the shards that `describe` has written of them (`open_shards`),
        whose endpoint is used.
      endpoint: see `Classifier.embed`.
      metric: 'cosine', for which vectors are normalised to length 1, or 'euclidean'.
      kind: 'exact', 'hnsw' or 'ivfpq', see `index.create`.
      own: more fields of the images, from a CSV file.
      place: 'milvus:URI', see `milvus`; by default the index is made in memory.

    Returns:
      The index, and the reasons for images that could not be read, by name.

    Raises:
      UserError: faiss is not installed, the endpoint is unknown, the CSV file does not suit, there
        are too few images for the kind, or no image could be read.
    """
    # Report a missing library before the long work.
    if place is None:
        faiss()
    if isinstance(images, Manifest):
        about, size, count = images.made_by, images.size, shards.count(images)['images']
    else:
        assert classifier is not None
        images = list(images)
        count = sum(some.source.num_examples for some in images)
        about, size = made_by(classifier, endpoint), classifier.embedding_size(endpoint)
    batches = _batches(classifier, images, about['endpoint'], failed := dict[str, str]())
    if place is not None:
        made = milvus.create(place, about, size, metric, kind, own)
        try:
            _fill(made, batches, own)
            _check_some(made, failed)
        except BaseException:
            made.drop()
            raise
        return made, failed
    index = create(about, size, metric, kind, count)
    if needed := index.training_size:
        # Train with a sample: some of the shards, which are samples, or some of all other images.
        first, gathered = [], 0
        while gathered < (min(needed, count) if isinstance(images, Manifest) else count):
            if (batch := next(batches, None)) is None:
                break
            first.append(batch)
            gathered += len(batch[1])
        every = np.concatenate([np.empty((0, size), np.float32), *(x for _, x in first)])
        with phase('training the index'):
            index.train(np.random.default_rng(0).permutation(every)[:needed])
        batches = itertools.chain(first, batches)
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
    """Adds batches to an index, with fields of the user's own."""
    for table, vectors in batches:
        index.add(own.join(table) if own else table, vectors)
    if own:
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
      own: as for `build`.

    Returns:
      The reasons for images that could not be read, by name.

    Raises:
      UserError: the shards were made by another classifier than the index.
    """
    if isinstance(images, Manifest) and images.made_by != index.made_by:
        raise UserError(
            f'{images.folder} was described by another model than the index was built with; '
            'build an index of it'
        )
    failed, again, endpoint = dict[str, str](), set[str](), index.made_by['endpoint']
    if replace:
        # Remove all of them at once, which takes a pass over the index.
        every = list(_batches(classifier, images, endpoint, failed))
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
        # Hand out full batches: faiss is slow with single vectors.
        tables.append(table.take(rows))
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
            # Do not read what is left out.
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


def query(
    classifier: Classifier,
    index: AnyIndex,
    images: Iterable[Named],
    top_k: int = 10,
    where: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Finds the nearest images in the index for each query image.

    Args:
      classifier: the one that made the index.
      index: the index.
      images: the query images.
      top_k: the number of neighbours.
      where: a condition that neighbours fulfil, see `fields.choose`.

    Yields:
      For each image `{'path', 'neighbours': [{'path', 'score'}, …]}`, the nearest first, and
      'error' if it could not be read. The score is the cosine or the Euclidean distance.

    Raises:
      UserError: the index was made with another model, endpoint or preprocessing; or the condition
        is not valid.
    """
    at_least_one('top_k', top_k)
    index.check(classifier)
    found = set[str]()
    for some in images:
        paths = iter(some.names)  # as the user wrote them
        for rows, vectors in describe_images(classifier, some, index.made_by['endpoint']):
            for row, vector, path in zip(rows, vectors, paths, strict=False):
                if row.error is not None:
                    yield {'path': path, 'neighbours': [], 'error': row.error}
                    continue
                (nearest,) = index.nearest(vector[None], top_k, where)
                neighbours = [{'path': name, 'score': score} for name, score in nearest]
                found.update(name for name, _ in nearest)
                yield {'path': path, 'neighbours': neighbours}
    tell_changed(index, found)


def tell_changed(index: AnyIndex, names: Iterable[str]) -> set[str]:
    """Warns of files that are missing or newer than the index; returns the missing ones."""
    written = index.read[1][-1] if index.read else np.inf
    gone, newer = set[str](), set[str]()
    for name in names:
        if OF_SPLIT.fullmatch(name):
            continue
        try:
            if os.stat(name).st_mtime_ns > written:
                newer.add(name)
        except (OSError, ValueError):
            gone.add(name)
    # One line for each kind, with an example.
    for some, what in ((gone, 'no longer exist'), (newer, 'have changed since it was built')):
        if some:
            text = 'images of the index that %s: %d, for example %r; build the index again'
            logging.warning(text, what, len(some), min(some))
    return gone


def write_results(
    run: Run,
    results: Sequence[dict[str, Any]],
    metric: str,
    path: AnyPath,
    limit: int = 500,
    title: str = 'Nearest images',
) -> None:
    """Writes results as an HTML page or a PNG: each image with its neighbours beside it.

    Files are shown by their paths below their common folder. Neighbours of another class than the
    image are marked.

    Args:
      run: the run whose data the names 'SPLIT:ID' refer to. A folder named like one of its classes
        gives the class of the files below it.
      results: as `query` yields them, or as `find_duplicates` returns them.
      metric: 'cosine' or 'euclidean', the meaning of the scores.
      path: the HTML page or PNG.
      limit: the largest number of images to show.
      title: the page's title.

    Raises:
      UserError: the path has another suffix, or cannot be written.
    """
    target, shown = output_file('output', path, PICTURES), results[:limit]
    if target.suffix.lower() == '.png':
        draw_neighbours(run, shown).savefig(target, format='png')
        return
    show = _pictures_of(run, results)
    # Find the neighbours of other classes first, because the note above the rows has their number.
    marks = [[show.mark(r['path'], n['path']) for n in r['neighbours']] for r in shown]

    def rows() -> Iterator[pages.Row]:
        for r, marked in zip(shown, marks, strict=True):
            head = r['path']
            first = Picture(show(head), r.get('error') or show.label(head))
            yield show.name(head), [first, *show.neighbours(r, marked)]

    # The note explains the scores, the paths, the marks and what is left out.
    word = (
        'cosine similarity, 1 if identical'
        if metric == 'cosine'
        else 'Euclidean distance, 0 if identical'
    )
    note = f'Each row shows an image and similar images with their scores ({word}).'
    if show.root:
        note += f' Paths are relative to {show.root}.'
    if pairs := sum(map(bool, itertools.chain(*marks))):
        note += f' Images of another class or folder are marked in orange ({pairs:,}).'
    if len(shown) < len(results):
        note += f' The first {len(shown):,} of {len(results):,} images are shown.'
    pages.write_page(target, title, note, rows())


def draw_neighbours(run: Run, results: Sequence[dict[str, Any]]) -> 'Figure':
    """Draws each image with its neighbours beside it; see `write_results`."""
    show, grid = _pictures_of(run, results), []
    for r in results:
        # A figure has no headings, so the title becomes the caption of the row's first picture.
        title = ': '.join(filter(None, (show.title(r['path']), r.get('error'))))
        marks = [show.mark(r['path'], n['path']) for n in r['neighbours']]
        grid.append([Picture(show(r['path']), title), *show.neighbours(r, marks)])
    return draw_grid(grid or [[Picture(None, 'nothing found')]])


def _pictures_of(run: Run, results: Sequence[dict[str, Any]]) -> 'Pictures':
    others = [n['path'] for r in results for n in r['neighbours']]
    return Pictures(run, [r['path'] for r in results], others)


class Pictures:
    """Images, titles and classes by the images' names in an index.

    Attributes:
      root: the common folder of all files; '' if they have none, or there are no files.
    """

    def __init__(self, run: Run, asked: Sequence[str] = (), found: Sequence[str] = ()):
        """Determines the common folder of the files.

        Args:
          run: the run whose data the names 'SPLIT:ID' refer to.
          asked: the names of the query images.
          found: the names of the neighbours. Their common folder is used if query images and
            neighbours together have none.
        """
        self._run = run
        self._splits: dict[str, Source] = {}
        # Names of splits have no folder. A query from another place may have only '/' in common
        # with the neighbours; their own common folder is used then.
        asked, found = ([n for n in names if not OF_SPLIT.fullmatch(n)] for names in (asked, found))
        roots = common_root([*asked, *found]), common_root(found)
        self.root = next((root for root in roots if root.strip(os.sep)), '')

    def __call__(self, name: str) -> np.ndarray | None:
        """Returns an image, uint8 [H, W, C], or None if it cannot be read or shown."""
        source, index = self._find(name)
        # Without random access each picture would need a pass over the whole split.
        if not source.indexed:
            return None
        return next((image for _, image in examples(source, [index])), None)

    def neighbours(self, result: dict[str, Any], marks: Iterable[str]) -> Iterator[Picture]:
        """Yields the picture of each neighbour of a result, with its title, score and mark."""
        for n, mark in zip(result['neighbours'], marks, strict=True):
            yield Picture(self(n['path']), f'{self.title(n["path"])}: {n["score"]:.3f}', mark)

    def name(self, name: str) -> str:
        """Returns a file's path below the root, or the name 'SPLIT:ID' unchanged."""
        return name if OF_SPLIT.fullmatch(name) else below(name, self.root)

    def title(self, name: str) -> str:
        """Returns the class of an example of a split, or a file's path below the root."""
        of_split = OF_SPLIT.fullmatch(name) is not None
        return (self.label(name) if of_split else '') or self.name(name)

    def label(self, name: str) -> str:
        """Returns the class of an image, or '' if it is unknown.

        A file's class is the folder in its path that is named like a class of the run.
        """
        if OF_SPLIT.fullmatch(name):
            source, index = self._find(name)
            if index >= source.num_examples or not source.class_names or not source.indexed:
                return ''
            return label_text(source.class_names, read_each(source, [index])[1][0])
        # Search the folders below the root first, then those above it from the inside out.
        inner = below(name, self.root)
        outer = os.path.abspath(name).removesuffix(inner)
        parts = [*inner.split(os.sep)[:-1], *reversed(outer.split(os.sep))]
        return next((part for part in parts if part in self._run.class_names), '')

    def mark(self, name: str, other: str) -> str:
        """Returns the note for a neighbour of another class; '' for one of the same class.

        If neither class is known, the folders of the two files are compared instead.
        """
        # Compare classes if both are known.
        one, another = self.label(name), self.label(other)
        if one and another:
            return '' if one == another else f'another class: {another}'
        files = [n for n in (name, other) if below(n, self.root) != n]
        apart = len({os.path.dirname(n) for n in files}) == 2
        return 'another folder' if apart and not (one or another) else ''

    def _find(self, name: str) -> tuple[Source, int]:
        match = OF_SPLIT.fullmatch(name)
        if match is None:
            return FileSource('file', (), (name,), np.array([-1])), 0
        if match[1] not in self._splits:
            self._splits[match[1]] = own_split(self._run, match[1])
        return self._splits[match[1]], int(match[2])


class Similar:
    """Finds the pictures in an index that are nearest to a new image, for the demo."""

    def __init__(self, classifier: Classifier, index: AnyIndex):
        """Raises UserError if another classifier made the index."""
        index.check(classifier)
        self._classifier, self._index = classifier, index
        self._show = Pictures(classifier.run, found=index.names)

    def __call__(self, source: FileSource, top_k: int) -> Iterator[Picture]:
        """Yields each neighbour's picture with its title and score."""
        asked = Named(source, source.paths)
        (found,) = query(self._classifier, self._index, [asked], top_k)
        yield from self._show.neighbours(found, [''] * len(found['neighbours']))


def neighbours_of(index: Index, nearest: list[tuple[int, float]]) -> list[dict[str, Any]]:
    """Converts (position, score) pairs of an index to the rows `{'path', 'score'}` of a result."""
    return [{'path': index.name(i), 'score': score} for i, score in nearest]
