"""Pages and figures of results: images with their neighbours, named and marked by class."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vision.core.errors import UserError
from vision.core.text import PICTURES, AnyPath, below, common_root, output_file
from vision.data.source import OF_SPLIT, FileSource, Source, label_text, read_each, shown_name
from vision.evaluation.run import Run
from vision.prediction import pages
from vision.prediction.classifier import Classifier
from vision.preprocess.inputs import examples
from vision.preprocess.pictures import Picture, draw_grid
from vision.search.descriptions import Named
from vision.search.naming import AnyIndex, own_split
from vision.search.search import query

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SCORES = {
    'cosine': 'cosine similarity, 1 if identical',
    'euclidean': 'Euclidean distance, 0 if identical',
    'copies': '1 if identical, more the more points match',
}


def write_results(
    run: Run,
    results: Sequence[dict[str, Any]],
    metric: str,
    path: AnyPath,
    limit: int = 500,
    title: str = 'Nearest images',
) -> None:
    """Writes results as an HTML page or a PNG: each image in a row with its neighbours.

    Titles show the paths of files relative to their common folder. Neighbours whose class differs
    from the image's are marked.

    Args:
      run: the run whose data the names 'SPLIT:ID' refer to. A folder named like one of its classes
        gives the class of the files below it.
      results: as `query` yields them, or as `find_duplicates` returns them.
      metric: 'cosine', 'euclidean' or 'copies', the meaning of the scores.
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

    # The note explains the scores, the paths and the marks, and counts the images left out.
    word = _SCORES[metric]
    note = f'Each row shows an image and similar images with their scores ({word}).'
    if show.root:
        note += f' Paths are relative to {show.root}.'
    if pairs := sum(map(bool, itertools.chain(*marks))):
        note += f' Images of another class or folder are marked in orange ({pairs:,}).'
    if len(shown) < len(results):
        note += f' The first {len(shown):,} of {len(results):,} images are shown.'
    pages.write_page(target, title, note, rows())


def draw_neighbours(run: Run, results: Sequence[dict[str, Any]]) -> 'Figure':
    """Draws each image in a row with its neighbours; see `write_results`."""
    show, grid = _pictures_of(run, results), []
    for r in results:
        # A figure has no headings, so the title becomes the caption of the row's first picture.
        title = ': '.join(filter(None, (show.title(r['path']), r.get('error'))))
        marks = [show.mark(r['path'], n['path']) for n in r['neighbours']]
        grid.append([Picture(show(r['path']), title), *show.neighbours(r, marks)])
    return draw_grid(grid or [[Picture(None, 'nothing found')]])


def root_of(results: Sequence[dict[str, Any]]) -> str:
    """Returns the common folder of the files in results; '' if no neighbour is a file."""
    asked, found = _names_in(results)
    return '' if all(map(OF_SPLIT.fullmatch, found)) else _root(asked, found)


def _names_in(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Returns the names of the query images, and those of the neighbours."""
    return [r['path'] for r in results], [n['path'] for r in results for n in r['neighbours']]


def _root(asked: Sequence[str], found: Sequence[str]) -> str:
    """Returns the common folder of query images and neighbours, or of the neighbours alone."""
    # Names of splits have no folder. If query images and neighbours have only '/' in common, use
    # the common folder of the neighbours.
    asked, found = ([n for n in names if not OF_SPLIT.fullmatch(n)] for names in (asked, found))
    roots = common_root([*asked, *found]), common_root(found)
    return next((root for root in roots if root.strip(os.sep)), '')


def _pictures_of(run: Run, results: Sequence[dict[str, Any]]) -> 'Pictures':
    return Pictures(run, *_names_in(results))


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
        self.root = _root(asked, found)

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
        """Returns a file's path below the root, or its absolute path; 'SPLIT:ID' is unchanged."""
        return shown_name(name, self.root)

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
        # Search the folders below the root first, then those above it, from the deepest on.
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
        names = [n for n in (name, other) if not OF_SPLIT.fullmatch(n)]
        files = [n for n in names if below(n, self.root) != n]
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
        from vision.search.local_features import opencv

        index.check(classifier)
        self._classifier, self._index = classifier, index
        # OpenCV can be installed and yet fail to import, for example without libGL.
        try:
            self._matches = opencv() is not None
        except UserError:
            self._matches = False
        self._show = Pictures(classifier.run, found=index.names)

    def __call__(self, source: FileSource, top_k: int) -> Iterator[Picture]:
        """Yields each neighbour's picture with its title and score."""
        yield from map(self.picture, self.find(source, top_k))

    def find(self, source: FileSource, top_k: int) -> list[dict[str, Any]]:
        """Returns the neighbours of the image of a source, as `query` yields them."""
        (found,) = query(self._classifier, self._index, [Named(source, source.paths)], top_k)
        return found['neighbours']

    def picture(self, neighbour: dict[str, Any]) -> Picture:
        """Returns a neighbour's picture with its title and score."""
        (picture,) = self._show.neighbours({'neighbours': [neighbour]}, [''])
        return picture

    def compare(
        self, image: np.ndarray, neighbours: Iterable[dict[str, Any]]
    ) -> Iterator[tuple[Picture, Picture | None]]:
        """Compares an image with its neighbours by local features, if OpenCV can be imported.

        Args:
          image: uint8 [H, W, C].
          neighbours: as `find` returns them.

        Yields:
          The picture of each neighbour. If it has a part in common with the image, the part is
          outlined, and the second picture shows the image beside the neighbour, with the matched
          points; otherwise it is None.
        """
        from vision.search.copies import DEFAULT
        from vision.search.explaining import draw_match, draw_part
        from vision.search.local_features import local_features, match, shared_part

        own = local_features(image) if self._matches else None
        for picture in map(self.picture, neighbours):
            found = None
            if own is not None and picture.image is not None:
                other = local_features(picture.image)
                found = match(own, other)
            if own is None or picture.image is None or found is None or not DEFAULT.verify(found):
                yield picture, None
                continue
            _, corners = shared_part(found.map, own.size, other.size)
            pair = draw_match(image, picture.image, found)
            mark = f'{found.inliers} matched points'
            part = draw_part(picture.image, corners)
            yield picture._replace(image=part, mark=mark), Picture(pair, picture.caption, mark)

    def duplicates(self) -> list[list[dict[str, Any]]]:
        """Returns the groups of `find_duplicates`, each a list that begins with its first image.

        The entry `keep` of an image is False if it could be deleted in favour of a kept one.
        """
        from vision.search.duplicates import find_duplicates

        found = []
        for group in find_duplicates(self._index, self._classifier.run):
            gone = {row['delete'] for row in group['delete']}
            images = [{'path': group['path'], 'score': 1.0}, *group['neighbours']]
            found.append([{**image, 'keep': image['path'] not in gone} for image in images])
        return found
