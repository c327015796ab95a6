"""Search by image: folders and splits into an index, and the nearest of it for new images."""

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
_BATCH = 1024  # vectors that are searched for at once


@dataclasses.dataclass(frozen=True)
class Named:
    """Images and their names: paths as they were given, or 'SPLIT:ID' of a run's own data."""

    source: Source
    names: Sequence[str]


def whole_split(run: Run, split: str) -> Named:
    """All images of a split of the run's own data.

    Raises:
      UserError: no such split, or the run has no data.
    """
    source = own_split(run, split)
    return Named(source, source.paths or [f'{split}:{i}' for i in range(source.num_examples)])


def own_split(run: Run, split: str) -> Source:
    """A split of the run's own data; UserError if there is none, or the run is only weights."""
    if not (run.path / 'dataset.json').is_file():
        raise UserError(f'{run.path} is weights without data: name files or folders, no split')
    return data.load(run.config.data, split)


def named(run: Run, words: AnyPath | Iterable[AnyPath]) -> list[Named]:
    """Images that a user names: files, folders, globs, or 'test:12' of the run's own data; one or several.

    Returns:
      Neighbouring words of one kind together, in their order.

    Raises:
      UserError: a folder or glob without images, or an example that is not there.
    """
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
    """Makes an index of images, in a stream, with a bar on a terminal.

    Args:
      classifier: what describes the images.
      images: of which none may be readable.
      endpoint: see `Classifier.embed`.
      metric: 'cosine', of vectors of length 1, or 'euclidean'.
      hnsw: approximate, for large sets.

    Returns:
      The index, and why other images could not be read, by name.

    Raises:
      UserError: faiss is missing, the endpoint is unknown, or no image could be read.
    """
    faiss()
    size = classifier.embedding_size(endpoint)
    index = create(fingerprint(classifier, endpoint), size, metric, hnsw)
    failed = add(classifier, index, images)
    if not index.names:
        name, reason = next(iter(failed.items()))
        raise UserError(f'no image could be read; the first is {name}: {reason}')
    return index, failed


def add(classifier: Classifier, index: Index, images: Iterable[Named]) -> dict[str, str]:
    """Adds images that are not in the index yet, by their names; paths become absolute.

    Returns:
      Why some could not be read, by name.
    """
    known, failed, again = set(index.names), dict[str, str](), set[str]()
    before = len(index.names)
    for some in images:
        endpoint, total = index.made_by['endpoint'], some.source.num_examples
        new = track(_each(classifier, some.source, endpoint), total, 'describing')
        names, vectors = list[str](), list[np.ndarray]()
        for position, vector, reason in new:
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
            if len(names) == _BATCH:
                index.add(names, np.stack(vectors))
                names, vectors = [], []
        if names:
            index.add(names, np.stack(vectors))
    tell_changed(index, again.difference(index.names[before:]))
    return failed


def query(
    classifier: Classifier, index: Index, images: Iterable[Named], top_k: int = 10
) -> Iterator[dict[str, Any]]:
    """Finds the nearest images, in a stream.

    Yields:
      For each image `{'path', 'neighbours': [{'path', 'score'}, …]}`, the nearest first, with
      'error' where it could not be read. The score is the cosine, or the Euclidean distance.

    Raises:
      UserError: the index was made by another model, endpoint or preprocessing.
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
    """Warns of images whose files are gone or newer than the file of their index; returns those that are gone."""
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
    for some, what in ((gone, 'are not there any more'), (newer, 'have changed since')):
        if some:
            logging.warning(
                '%d images of the index %s, as %r; build it again', len(some), what, min(some)
            )
    return gone


def write_results(
    run: Run,
    results: Sequence[dict[str, Any]],
    metric: str,
    path: AnyPath,
    limit: int = 500,
    title: str = 'Nearest images',
) -> None:
    """Writes results as a page with thumbnails, or as a figure: each image, and beside it others.

    Files are named by their paths below the folder that all are in; neighbours of another class than
    the image are marked.

    Args:
      run: whose data the names 'SPLIT:ID' mean, and whose classes folders are called by.
      results: as `query` or `duplicates` return them.
      metric: what the scores are.
      path: of an HTML page or a PNG.
      limit: of the images that are shown.
      title: of the page.

    Raises:
      UserError: the path has another ending, or cannot be written to.
    """
    target, shown = output_file('output', path, PICTURES), results[:limit]
    if target.suffix.lower() == '.png':
        draw_neighbours(run, shown).savefig(target, format='png')
        return
    show = _pictures_of(run, results)
    marks = [[show.mark(r['path'], n['path']) for n in r['neighbours']] for r in shown]

    def rows() -> Iterator[pages.Row]:
        for r, marked in zip(shown, marks, strict=True):
            head = r['path']
            first = Picture(show(head), r.get('error') or show.label(head))
            yield show.name(head), [first, *show.neighbours(r, marked)]

    word = 'cosine: 1 is the same' if metric == 'cosine' else 'Euclidean distance: 0 is the same'
    note = f'Each image and beside it those that are near, with scores ({word}).'
    if show.root:
        note += f' Files are below {show.root}.'
    if pairs := sum(map(bool, itertools.chain(*marks))):
        note += f' Marked: {pairs:,} of another class or folder than the image.'
    if len(shown) < len(results):
        note += f' The first {len(shown):,} of {len(results):,} images are shown.'
    pages.write_page(target, title, note, rows())


def draw_neighbours(run: Run, results: Sequence[dict[str, Any]]) -> 'Figure':
    """Draws each image, and beside it others, as a figure; see `write_results`."""
    show, grid = _pictures_of(run, results), []
    for r in results:
        title = ': '.join(filter(None, (show.title(r['path']), r.get('error'))))
        marks = [show.mark(r['path'], n['path']) for n in r['neighbours']]
        grid.append([Picture(show(r['path']), title), *show.neighbours(r, marks)])
    return draw_grid(grid or [[Picture(None, 'nothing found')]])


def _pictures_of(run: Run, results: Sequence[dict[str, Any]]) -> 'Pictures':
    others = [n['path'] for r in results for n in r['neighbours']]
    return Pictures(run, [r['path'] for r in results], others)


class Pictures:
    """Finds images again by their names, and says what to call them.

    Attributes:
      root: the folder that all files are in; '' where that is none, or there are no files.
    """

    def __init__(self, run: Run, asked: Sequence[str] = (), found: Sequence[str] = ()):
        """Takes the run whose data the names 'SPLIT:ID' mean.

        Args:
          run: whose classes folders are called by, too.
          asked: names of images that others were looked for.
          found: names of those; they alone decide the root where all together have none.
        """
        self._run = run
        self._splits: dict[str, Source] = {}
        asked, found = ([n for n in names if not OF_SPLIT.fullmatch(n)] for names in (asked, found))
        roots = common_root([*asked, *found]), common_root(found)
        self.root = next((root for root in roots if root.strip(os.sep)), '')

    def __call__(self, name: str) -> np.ndarray | None:
        """uint8 [H, W, C], or None."""
        source, index = self._find(name)
        if not source.indexed:  # each picture would read the split through
            return None
        return next((image for _, image in examples(source, [index])), None)

    def neighbours(self, result: dict[str, Any], marks: Iterable[str]) -> Iterator[Picture]:
        """Yields a picture of each neighbour in a row of results, with its title, score and mark."""
        for n, mark in zip(result['neighbours'], marks, strict=True):
            yield Picture(self(n['path']), f'{self.title(n["path"])}: {n["score"]:.3f}', mark)

    def name(self, name: str) -> str:
        """A file's path below the root; the name of an example of a split."""
        return name if OF_SPLIT.fullmatch(name) else below(name, self.root)

    def title(self, name: str) -> str:
        """The class of an example of a split; of a file its path below the root."""
        of_split = OF_SPLIT.fullmatch(name) is not None
        return (self.label(name) if of_split else '') or self.name(name)

    def label(self, name: str) -> str:
        """The class of an example of a split, or of a file in a folder that is called as a class; or ''."""
        if OF_SPLIT.fullmatch(name):
            source, index = self._find(name)
            if index >= source.num_examples or not source.class_names or not source.indexed:
                return ''
            return label_text(source.class_names, read_each(source, [index])[1][0])
        inner = below(name, self.root)
        outer = os.path.abspath(name).removesuffix(inner)
        parts = [*inner.split(os.sep)[:-1], *reversed(outer.split(os.sep))]
        return next((part for part in parts if part in self._run.class_names), '')

    def mark(self, name: str, other: str) -> str:
        """The difference of another image: its class, or, of files without classes, its folder."""
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
    """Pictures of the images of an index that are nearest to a new one, as the demo shows them."""

    def __init__(self, classifier: Classifier, index: Index):
        """Takes the classifier that describes the images; UserError if another one made the index."""
        index.check(classifier)
        self._classifier, self._index = classifier, index
        self._show = Pictures(classifier.run, found=index.names)

    def __call__(self, source: FileSource, top_k: int) -> Iterator[Picture]:
        """Yields each neighbour's picture with its title and score."""
        asked = Named(source, source.paths)
        (found,) = query(self._classifier, self._index, [asked], top_k)
        yield from self._show.neighbours(found, itertools.repeat('', len(found['neighbours'])))


def _each(
    classifier: Classifier, source: Source, endpoint: str
) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """Yields each image's position, and its vector [D] or why there is none, in their order."""
    for positions, vectors, failed in classifier.embed_source(source, endpoint):
        there = dict(zip(map(int, positions), vectors, strict=True))
        for position in sorted([*there, *failed]):
            yield position, there.get(position), failed.get(position, '')


def neighbours_of(index: Index, nearest: list[tuple[int, float]]) -> list[dict[str, Any]]:
    """The rows of an answer, `{'path', 'score'}`, for positions in an index and their scores."""
    return [{'path': index.names[i], 'score': score} for i, score in nearest]
