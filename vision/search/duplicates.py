"""Duplicates in an index: files of the same bytes, and images that are nearly the same."""

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
from vision.search.index import Index, faiss, unit
from vision.search.search import OF_SPLIT, Pictures, neighbours_of, own_split, tell_changed

_BATCH = 1024  # vectors that are searched for at once
_LOOKED_AT = 1024  # of those that are near one image
# Thumbnails of a photograph and of itself at a sixth of its size, at JPEG quality 20, or 1.4 times as
# bright have .98 and more; cropped by 3 % at each edge, .95 to .98. So have many pairs of digits.
_SIDE, _CORRELATION = 16, 0.98
_SHADE = 3  # of 255, between blank images that are the same


def find_duplicates(index: Index, run: Run, threshold: float = 0.95) -> list[dict[str, Any]]:
    """Finds images of an index that are the same, or nearly: resized, compressed, a little retouched.

    Files with the same bytes are the same. Two others are nearly, if the cosine of their vectors says so and
    their thumbnails too: a classifier's vectors alone are nearly the same for many images of a class. A file
    that several links lead to, symbolic or hard, is one, and goes by its real path. Files that are not there any more
    are left out, with a warning.

    Args:
      index: any.
      run: whose data the names 'SPLIT:ID' mean.
      threshold: from which cosine on two vectors are the same.

    Returns:
      `{'path', 'neighbours': [{'path', 'score'}, …]}`, groups of an image and those that are the same
      as it, exact copies first, or nearly, or nearly as another of its group. Each image that has a duplicate is
      in one of them, only.

    Raises:
      UserError: the threshold is no cosine.
    """
    if not -1 <= threshold <= 1:
        raise UserError(f'threshold={threshold} is no cosine: give a number from -1 to 1, as 0.95')
    vectors = unit(index.vectors())
    names, left_out = _real_names(index)
    index = Index(index.made_by, 'cosine', names, faiss().IndexFlatIP(vectors.shape[1]))
    index.index.add(vectors)
    copies = _copies(run, names, left_out)
    alike = _Alike(run, names)
    # By an image's position: the neighbours of its group's first.
    group_of: dict[int, list[dict[str, Any]]] = {}
    groups = []
    found = _near(index, vectors, threshold)
    for position, nearest in enumerate(track(found, len(vectors), 'comparing')):
        if position in group_of or position in left_out:
            continue
        same = [i for i in copies.get(position, ()) if i != position]
        near = [(i, 1.0) for i in same]
        near += [
            (i, s)
            for i, s in nearest
            if i not in {position, *same} and i not in left_out and alike(position, i)
        ]
        free = [(i, score) for i, score in near if i not in group_of]
        if free:
            neighbours = neighbours_of(index, free)
            group_of |= dict.fromkeys([position, *(i for i, _ in free)], neighbours)
            groups.append({'path': index.names[position], 'neighbours': neighbours})
        elif near:
            neighbours = group_of[near[0][0]]
            group_of[position] = neighbours
            neighbours += neighbours_of(index, [(position, near[0][1])])
    return groups


def _real_names(index: Index) -> tuple[list[str], set[int]]:
    """Real paths of files in place of links to them, and the positions of what is left out.

    These are further links to the same file, and files that are not there: who keeps the first of a group of
    copies must have it.
    """
    gone = tell_changed(index, index.names)
    real, left_out, seen = list[str](), set[int](), dict[tuple[int, int], int]()
    for position, name in enumerate(index.names):
        try:
            at = os.stat(name)
        except (OSError, ValueError):  # an example of a split, or a file that is gone
            real.append(name)
            if name in gone:
                left_out.add(position)
            continue
        real.append(os.path.realpath(name))
        if seen.setdefault((at.st_dev, at.st_ino), position) != position:
            left_out.add(position)
    return real, left_out


def _copies(run: Run, names: Sequence[str], left_out: set[int]) -> dict[int, list[int]]:
    """The positions of images with the same bytes, by the position of each that has a copy."""
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
    """Yields the position and a digest of each image that is 'SPLIT:ID' of the run's data."""
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
    """Of each vector all of the index that are so near; at most `_LOOKED_AT` of them."""
    for start in range(0, len(vectors), _BATCH):
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
    """True if two images look the same: the correlation of their grey thumbnails, or the colour if they are blank."""

    def __init__(self, run: Run, names: Sequence[str]):
        self._show, self._names = Pictures(run), names
        self._looks = functools.cache(self._look)

    def __call__(self, one: int, other: int) -> bool:
        """Compares two images; of a split that is only read in order the vectors alone decide.

        A file that cannot be read any more is like no other.
        """
        a, b = self._looks(one), self._looks(other)
        if a is None or b is None:
            unseen = [self._names[i] for i, look in ((one, a), (other, b)) if look is None]
            return all(map(OF_SPLIT.fullmatch, unseen))
        if not a[0].any() or not b[0].any():
            return not a[0].any() and not b[0].any() and float(abs(a[1] - b[1]).max()) <= _SHADE
        return float(a[0] @ b[0]) >= _CORRELATION

    def _look(self, position: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The thumbnail without its mean, of length 1 (zeros if blank), and the mean colour [3]."""
        image = self._show(self._names[position])
        if image is None:
            return None
        pixels = pictures.grey(image, _SIDE).ravel()
        contrast = pixels - pixels.mean()
        if np.abs(contrast).max() < 1:
            contrast = np.zeros_like(contrast)
        return unit(contrast[None])[0], to_rgb(image).mean(axis=(0, 1))
