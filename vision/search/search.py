"""Reverse image search: indexing of folders and splits, queries, and pages of results."""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from vision.core.errors import UserError, at_least_one
from vision.core.progress import track
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
from vision.search.index import Index, create, faiss, fingerprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_SPLIT = re.compile(r'(train|validation|test):(\d+)')
_BATCH = 1024  # vectors that are added to the index at once


@dataclasses.dataclass(frozen=True)
class Named:
    """A source with names for its images: paths as given, or 'SPLIT:ID' of a run's data."""

    source: Source
    names: Sequence[str]


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
    classifier: Classifier,
    images: Iterable[Named],
    endpoint: str = 'features',
    metric: str = 'cosine',
    hnsw: bool = False,
) -> tuple[Index, dict[str, str]]:
    """Builds an index of images batch by batch, with a progress bar on a terminal.

    Args:
      classifier: computes the vectors.
      images: the images to index.
      endpoint: see `Classifier.embed`.
      metric: 'cosine', for which vectors are normalised to length 1, or 'euclidean'.
      hnsw: build an approximate index, for large sets.

    Returns:
      The index, and the reasons for images that could not be read, by name.

    Raises:
      UserError: faiss is not installed, the endpoint is unknown, or no image could be read.
    """
    # Report a missing library before the long work.
    faiss()
    size = classifier.embedding_size(endpoint)
    index = create(fingerprint(classifier, endpoint), size, metric, hnsw)
    failed = add(classifier, index, images)
    if not index.names:
        name, reason = next(iter(failed.items()))
        raise UserError(f'no image could be read, for example {name}: {reason}')
    return index, failed


def add(classifier: Classifier, index: Index, images: Iterable[Named]) -> dict[str, str]:
    """Adds images whose names are not in the index yet; their paths are stored as absolute paths.

    Returns:
      The reasons for images that could not be read, by name.
    """
    known, failed, again = set(index.names), dict[str, str](), set[str]()
    before = len(index.names)
    for some in images:
        endpoint, total = index.made_by['endpoint'], some.source.num_examples
        new = track(_each(classifier, some.source, endpoint), total, 'describing')
        names, vectors = list[str](), list[np.ndarray]()
        for position, vector, reason in new:
            # Skip what cannot be read and what the index has already.
            name = some.names[position]
            if vector is None:
                failed[name] = reason
                continue
            if some.source.paths is not None:
                name = os.path.abspath(name)
            if name in known:
                again.add(name)
            else:
                known.add(name)
                names.append(name)
                vectors.append(vector)
            # Add full batches at once: faiss is slow with single vectors.
            if len(names) == _BATCH:
                index.add(names, np.stack(vectors))
                names, vectors = [], []
        if names:
            index.add(names, np.stack(vectors))
    # Warn of files that have changed since an earlier run indexed them.
    tell_changed(index, again.difference(index.names[before:]))
    return failed


def query(
    classifier: Classifier, index: Index, images: Iterable[Named], top_k: int = 10
) -> Iterator[dict[str, Any]]:
    """Finds the nearest images in the index for each query image.

    Yields:
      For each image `{'path', 'neighbours': [{'path', 'score'}, …]}`, the nearest first, and
      'error' if it could not be read. The score is the cosine or the Euclidean distance.

    Raises:
      UserError: the index was made with another model, endpoint or preprocessing.
    """
    at_least_one('top_k', top_k)
    index.check(classifier)
    found = set[str]()
    for some in images:
        for position, vector, reason in _each(classifier, some.source, index.made_by['endpoint']):
            path = some.names[position]
            if vector is None:
                yield {'path': path, 'neighbours': [], 'error': reason}
                continue
            (nearest,) = index.search(vector[None], top_k)
            neighbours = neighbours_of(index, nearest)
            found.update(n['path'] for n in neighbours)
            yield {'path': path, 'neighbours': neighbours}
    tell_changed(index, found)


def tell_changed(index: Index, names: Iterable[str]) -> set[str]:
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

    def __init__(self, classifier: Classifier, index: Index):
        """Raises UserError if another classifier made the index."""
        index.check(classifier)
        self._classifier, self._index = classifier, index
        self._show = Pictures(classifier.run, found=index.names)

    def __call__(self, source: FileSource, top_k: int) -> Iterator[Picture]:
        """Yields each neighbour's picture with its title and score."""
        asked = Named(source, source.paths)
        (found,) = query(self._classifier, self._index, [asked], top_k)
        yield from self._show.neighbours(found, [''] * len(found['neighbours']))


def _each(
    classifier: Classifier, source: Source, endpoint: str
) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """Yields (position, vector [D] or None, reason) of each image, in the order of the source."""
    for positions, vectors, failed in classifier.embed_source(source, endpoint):
        there = dict(zip(map(int, positions), vectors, strict=True))
        for position in sorted([*there, *failed]):
            yield position, there.get(position), failed.get(position, '')


def neighbours_of(index: Index, nearest: list[tuple[int, float]]) -> list[dict[str, Any]]:
    """Converts (position, score) pairs of an index to the rows `{'path', 'score'}` of a result."""
    return [{'path': index.names[i], 'score': score} for i, score in nearest]
