"""Detection of duplicates in an index: identical files and near-identical images."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.progress import track
from vision.data.source import BadImage, read_file, read_some
from vision.evaluation.run import Run
from vision.prediction import pictures
from vision.preprocess.pictures import to_rgb
from vision.search.descriptions import OF_SPLIT
from vision.search.display import Pictures
from vision.search.index import Index, create, unit
from vision.search.search import AnyIndex, neighbours_of, own_split, tell_changed

_BATCH = 1024  # vectors of one search
_LOOKED_AT = 1024  # the largest number of neighbours of an image that are considered
# Side of a thumbnail, and the smallest correlation of thumbnails of the same image. The correlation
# between a photograph and a copy is at least .98 if the copy has a sixth of its size, JPEG quality
# 20 or 1.4 times its brightness. It is .95 to .98 if the copy is cropped by 3 % at each edge, but
# many pairs of different digits have such correlations, too.
_SIDE, _CORRELATION = 16, 0.98
_SHADE = 3  # of 255: the largest difference in colour between equal blank images


def find_duplicates(index: AnyIndex, run: Run, threshold: float = 0.95) -> list[dict[str, Any]]:
    """Finds groups of duplicates in an index: exact copies, and resized or recompressed copies.

    Files with the same bytes are exact copies. Two other images are duplicates if both the cosine
    of their vectors and the correlation of their thumbnails are high. The vectors alone do not
    suffice: a classifier maps many images of a class to nearly the same vector. Several symbolic or
    hard links to one file count as one image, under the file's real path. Missing files are skipped
    with a warning.

    Args:
      index: any index.
      run: the run whose data the names 'SPLIT:ID' refer to.
      threshold: the smallest cosine between the vectors of duplicates.

    Returns:
      Groups `{'path', 'neighbours': [{'path', 'score'}, …]}`: an image and its duplicates, exact
      copies first. A group may also contain an image that is a duplicate of a neighbour, not of the
      first image. Each image with a duplicate is in exactly one group.

    Raises:
      UserError: the threshold is outside −1 … 1.
    """
    if not -1 <= threshold <= 1:
        raise UserError(
            f'threshold={threshold} is not a cosine: use a number from -1 to 1, such as 0.95'
        )
    # Search among unit vectors under the files' real paths.
    vectors = unit(index.vectors())
    names, left_out = _real_names(index)
    exact = create(index.made_by, vectors.shape[1])
    exact.add(names, vectors)
    copies = _copies(run, names, left_out)
    alike = _Alike(run, names)
    # The list of neighbours of the group that an image belongs to, by the image's position.
    group_of: dict[int, list[dict[str, Any]]] = {}
    groups = []
    found = _near(exact, vectors, threshold)
    for position, nearest in enumerate(track(found, len(vectors), 'comparing')):
        if position in group_of or position in left_out:
            continue
        # Collect the duplicates of this image: exact copies, then images that look alike.
        same = [i for i in copies.get(position, ()) if i != position]
        near = [(i, 1.0) for i in same]
        near += [
            (i, s)
            for i, s in nearest
            if i not in {position, *same} and i not in left_out and alike(position, i)
        ]
        # Start a group with the duplicates that have no group yet. If all of them have one, add the
        # image to the group of the first.
        free = [(i, score) for i, score in near if i not in group_of]
        if free:
            neighbours = neighbours_of(exact, free)
            group_of |= dict.fromkeys([position, *(i for i, _ in free)], neighbours)
            groups.append({'path': names[position], 'neighbours': neighbours})
        elif near:
            neighbours = group_of[near[0][0]]
            group_of[position] = neighbours
            neighbours += neighbours_of(exact, [(position, near[0][1])])
    return groups


def _real_names(index: AnyIndex) -> tuple[list[str], set[int]]:
    """Replaces links by the files' real paths, and returns the positions of names to skip.

    Missing files and further links to the same file are skipped. If a link counted as a duplicate,
    a user who keeps one file of each group and deletes the others could lose an image.
    """
    names = index.names
    gone = tell_changed(index, names)
    real, left_out, seen = list[str](), set[int](), dict[tuple[int, int], int]()
    for position, name in enumerate(names):
        try:
            at = os.stat(name)
        except (OSError, ValueError):  # an example of a split, or a file that is gone
            real.append(name)
            if name in gone:
                left_out.add(position)
            continue
        real.append(os.path.realpath(name))
        # Hard links have different paths, but the same device and inode.
        if seen.setdefault((at.st_dev, at.st_ino), position) != position:
            left_out.add(position)
    return real, left_out


def _copies(run: Run, names: Sequence[str], left_out: set[int]) -> dict[int, list[int]]:
    """Maps the position of each image that has an exact copy to the positions of all its copies."""
    # Hash only files that share their size with another file.
    by_size: dict[int, list[int]] = {}
    for position, name in enumerate(names):
        if position not in left_out and OF_SPLIT.fullmatch(name) is None and os.path.isfile(name):
            by_size.setdefault(os.path.getsize(name), []).append(position)
    to_read = [p for positions in by_size.values() if len(positions) > 1 for p in positions]
    by_bytes: dict[bytes, list[int]] = {}
    for position in track(to_read, len(to_read), 'reading'):
        with contextlib.suppress(BadImage):
            digest = hashlib.sha256(read_file(names[position])).digest()
            by_bytes.setdefault(digest, []).append(position)
    for position, digest in _digests_of_splits(run, names):
        by_bytes.setdefault(digest, []).append(position)
    return {
        p: positions for positions in by_bytes.values() if len(positions) > 1 for p in positions
    }


def _digests_of_splits(run: Run, names: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    """Yields the position and the SHA-256 digest of each image that is named 'SPLIT:ID'."""
    # Read each split once, for all its examples.
    asked: dict[str, dict[int, int]] = {}
    for position, name in enumerate(names):
        if match := OF_SPLIT.fullmatch(name):
            asked.setdefault(match[1], {})[int(match[2])] = position
    for split, positions in asked.items():
        source = own_split(run, split)
        there = sorted(i for i in positions if i < source.num_examples)
        for example, image, _ in track(read_some(source, there), len(there), 'reading'):
            if not isinstance(image, BadImage):
                data = (
                    image
                    if isinstance(image, bytes)
                    else repr(image.shape).encode() + image.tobytes()
                )
                yield positions[example], hashlib.sha256(data).digest()


def _near(index: Index, vectors: np.ndarray, threshold: float) -> Iterator[list[tuple[int, float]]]:
    """Yields for each vector its neighbours with a cosine of at least `threshold`, nearest first.

    At most `_LOOKED_AT` neighbours are considered.
    """
    for start in range(0, len(vectors), _BATCH):
        # Ask for more neighbours while any image's farthest one still reaches the threshold.
        some = vectors[start : start + _BATCH]
        count = 16
        found = index.search(some, count)
        while count < min(_LOOKED_AT, len(vectors)) and any(
            nearest and nearest[-1][1] >= threshold for nearest in found
        ):
            count *= 4
            found = index.search(some, count)
        yield from ([(i, s) for i, s in nearest if s >= threshold] for nearest in found)


class _Alike:
    """Decides if two images look the same.

    Compares the correlation of grey thumbnails, or the colours of blank images.
    """

    def __init__(self, run: Run, names: Sequence[str]):
        self._show, self._names = Pictures(run), names
        self._looks = functools.cache(self._look)

    def __call__(self, one: int, other: int) -> bool:
        """Compares the images at two positions.

        Images of a split without random access cannot be compared and count as equal; only their
        vectors are then compared. A file that can no longer be read is not equal to any image.
        """
        a, b = self._looks(one), self._looks(other)
        if a is None or b is None:
            unseen = [self._names[i] for i, look in ((one, a), (other, b)) if look is None]
            return all(map(OF_SPLIT.fullmatch, unseen))
        # Blank images have no contrast to correlate: compare their colours.
        if not a[0].any() or not b[0].any():
            return not a[0].any() and not b[0].any() and float(abs(a[1] - b[1]).max()) <= _SHADE
        return float(a[0] @ b[0]) >= _CORRELATION

    def _look(self, position: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the centred thumbnail as a unit vector (0 if blank) and the mean colour [3]."""
        image = self._show(self._names[position])
        if image is None:
            return None
        pixels = pictures.grey(image, _SIDE).ravel()
        contrast = pixels - pixels.mean()
        if np.abs(contrast).max() < 1:  # blank: only rounding noise is left
            contrast = np.zeros_like(contrast)
        return unit(contrast[None])[0], to_rgb(image).mean(axis=(0, 1))
