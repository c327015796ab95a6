"""Rules that split folders and lists of images, and that order their classes.

There are two versions of the rules. A run that was started with the older version keeps its splits,
so that it is never tested on an image that it was trained on.
"""

import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vision.core.durations import parse_fold, parse_share
from vision.core.errors import UserError, unknown
from vision.data.files import warn_once
from vision.data.order import hash64
from vision.data.source import FileSource, NoSplitError, Source, as_labels

SPLITS = ('train', 'validation', 'test')
ALL = 'all'  # name of all splits together
TRAIN, VALIDATION, TEST = range(3)
# The names of each split in folders and lists, the preferred one first.
_NAMES = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid'),
    'test': ('test', 'testing'),
}
_NAMED = 5  # number of classes that a message names
_HELD_OUT = 0.1  # default share of each class for validation and for test
_RARE = 10  # sets of labels with fewer images are split together

Share = int | float | str | None


class Shares:
    """Shares, fold and version of the rules, which determine the splits of a folder or list."""

    def __init__(self, validation: Share, test: Share, fold: str | None, rules: int):
        """Stores the keys of `config.data` with these names; raises UserError for invalid ones."""
        self.given = {'validation': validation, 'test': test, 'fold': fold}
        self.rules = rules
        self._shares = {
            'validation': parse_share(validation, 'data.validation'),
            'test': parse_share(test, 'data.test'),
        }
        self._fold = None if fold is None else parse_fold(fold)
        if fold is not None and test is not None:
            raise UserError('give either data.fold or data.test: the fold is the test split')
        if rules == 1:
            self.refuse('data.rules=1 has fixed splits', 'validation', 'test', 'fold')

    def choose(
        self,
        name: str,
        split: str,
        classes: tuple[str, ...],
        images: Sequence[tuple[str, Any]],
        parts: np.ndarray,
    ) -> FileSource:
        """Returns the images of a split as a source; warns of classes without images in the split.

        Args:
          name: the folder or list, for messages.
          split: one of `SPLITS`, or `ALL`.
          classes: K names.
          images: absolute paths and labels.
          parts: the split of each image, from `parts`.

        Raises:
          UserError: the split is empty.
        """
        name = f'{name}:{split}'
        if self._shares.get(split) == 0:
            raise NoSplitError(
                f'{name}: there is no such split, because data.{split}={self.given[split]}'
            )
        # The splits follow one another in `ALL`.
        if split == ALL:
            chosen = np.argsort(parts, kind='stable').tolist()
        else:
            chosen = np.flatnonzero(parts == SPLITS.index(split)).tolist()
        source = source_of(name, classes, [images[i] for i in chosen])
        warn_of_empty_classes(source)
        return source

    def refuse(self, why: str, *keys: str) -> None:
        """Raises UserError if one of these keys is given, because it would have no effect."""
        for key in keys:
            if self.given[key] is not None:
                raise UserError(f'data.{key}={self.given[key]}: {why}; leave it out')

    def parts(
        self, images: Sequence[tuple[str, Any]], made: Sequence[str] = ('validation', 'test')
    ) -> np.ndarray:
        """Returns the split of each image as an index into SPLITS, int8 [N].

        Args:
          images: normalised paths relative to the root, and labels, int or float [K]. A path that
            occurs several times is in one split.
          made: the splits to take from train.

        Raises:
          UserError: no image is left for train.
        """
        # Version 1 splits each image by its hash alone. Images of splits not in `made` go to train.
        if self.rules == 1:
            parts = _by_hash_alone([path for path, _ in images])
            parts[~np.isin(parts, [SPLITS.index(split) for split in made])] = TRAIN
            return parts
        # Reduce the images to distinct paths, and turn the shares into fractions.
        names, first, inverse = _distinct([path for path, _ in images])
        labels = np.array([images[i][1] for i in first])
        validation, test = (
            _fraction(self._shares[split], len(names), f'data.{split}') if split in made else 0.0
            for split in ('validation', 'test')
        )
        fold = self._fold if 'test' in made else None
        if validation + (1 / fold[1] if fold else test) >= 1:
            raise UserError(
                f'data.validation and data.test leave none of {len(names):,} images for train'
            )
        # Split each class by the rank of the paths' hashes.
        hashes = hash64(np.array([_path_hash(name) for name in names], np.uint64))
        found = by_rank(hashes, _strata(labels), validation, test, fold)
        # With several labels per image, a class with few images may have none in train.
        if labels.ndim == 2:
            _leave_one_for_train(labels, found)
        return found[inverse]


def check_split(split: str) -> None:
    """Raises UserError if a name is neither one of `SPLITS` nor `ALL`."""
    if split not in (*SPLITS, ALL):
        raise unknown('split', split, (*SPLITS, ALL))


def split_named(text: str) -> str | None:
    """Returns the split in `SPLITS` that a folder or a list's cell names, or None."""
    return next((split for split, names in _NAMES.items() if text.lower() in names), None)


def preferred(names: Iterable[str]) -> list[str]:
    """Sorts names of one split, the preferred one first: 'val' before 'valid'."""
    order = [name for names in _NAMES.values() for name in names]
    return sorted(names, key=lambda name: order.index(name.lower()))


def source_of(name: str, classes: tuple[str, ...], images: Sequence[tuple[str, Any]]) -> FileSource:
    """Returns a source of images (absolute path, label); raises UserError if there are none."""
    if not images:
        raise UserError(f'{name}: the split has no examples')
    paths, labels = zip(*images, strict=True)
    return FileSource(name, classes, paths, as_labels(np.array(labels)))


def warn_of_empty_classes(source: Source) -> None:
    """Warns of classes without an image in a split."""
    labels, names = source.labels, source.class_names
    # Count the images of each class.
    found = labels.sum(0) if source.multi_label else np.bincount(labels, minlength=len(names))
    if without := [names[i] for i in np.flatnonzero(found == 0)]:
        count = '1 class has' if len(without) == 1 else f'{len(without)} classes have'
        warn_once(f'{source.name}: {count} no image in this split: {some_of(without)}')


def some_of(names: Sequence[str]) -> str:
    """Returns the first few names and the number of further ones, for a message."""
    more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(map(repr, names[:_NAMED])) + more


def by_rank(
    hashes: np.ndarray,
    classes: np.ndarray,
    validation: float,
    test: float,
    fold: tuple[int, int] | None = None,
) -> np.ndarray:
    """Splits each class by the rank of its examples' hashes.

    The split is stratified, and stable when examples are added: test gets the lowest ranks of a
    class and validation the highest, so that new examples move few old ones to another split, and
    none between test and validation. The size of a split is the number of hashes in its share of
    the hash range, limited to within one example of the exact share. When 10 % of examples
    are added, 1.3 to 2.9 % of the old ones move in classes of 12 to 100 examples, and 0.6 % in
    classes of 500.

    Args:
      hashes: hash of each example's name, uint64 [N].
      classes: int [N]; the numbers may have gaps.
      validation: share of each class, in [0, 1).
      test: share of each class; the sum of both is below 1.
      fold: (k, n) makes test the k-th of n parts instead, counted from 1. The parts are disjoint
        and cover all examples, except in classes of one example, which stay in train.

    Returns:
      TRAIN, VALIDATION or TEST for each example, int8 [N]. In each class every split has its share
      within one example. Train has at least one example; so has every other split with a share, if
      the class has enough examples.
    """
    parts = np.full(len(hashes), TRAIN, np.int8)
    # Map the hashes to [0, 1), and sort the examples by class and hash.
    places = (hashes >> np.uint64(11)) * 2.0**-53
    order = np.lexsort((hashes, classes))
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    for turn, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        ranked = order[start : start + size]
        # Find the exact share of each split, and the number of hashes in its part of [0, 1).
        if fold is None:
            asked = size * test, size * validation
            here = places[ranked]
            near = int((here < test).sum()), int((here >= 1 - validation).sum())
        else:
            # A class with fewer examples than parts leaves some parts empty, so each class starts
            # at a different part.
            part = (fold[0] - 1 + turn) % fold[1]
            first = part * size // fold[1]
            tests = min((part + 1) * size // fold[1] - first, size - 1)
            asked = tests, size * validation
            near = tests, math.floor(size * validation + 0.5)
            ranked = np.roll(ranked, -first)
        # Test gets the lowest ranks, validation the highest.
        tested, validated = _counts(size, asked, near, fold is None, turn)
        parts[ranked[:tested]] = TEST
        parts[ranked[size - validated :]] = VALIDATION
    return parts


def _counts(
    size: int, asked: tuple[float, float], near: tuple[int, int], both: bool, turn: int
) -> list[int]:
    """Returns the numbers of test and validation examples in a class (see `by_rank`).

    Args:
      size: number of examples in the class.
      asked: the shares of test and validation, in examples.
      near: the preferred numbers, which are limited to within one example of `asked`.
      both: True if the number of test examples may be adjusted, too.
      turn: number of the class; if both splits exceed their shares equally, its parity determines
        which one gives an example to train.
    """
    # Limit the preferred numbers, and give each split with a share at least one example.
    rounding = 1e-9
    counts = [
        max(1, min(max(n, math.ceil(a - 1 - rounding)), math.floor(a + 1 + rounding))) if a else 0
        for n, a in zip(near, asked, strict=True)
    ]

    def excess(i: int) -> float:
        return counts[i] - asked[i]

    # Train must also have its share within one example, and at least one example.
    least = math.ceil(sum(asked) - 1 - rounding)
    most = min(size - 1, math.floor(sum(asked) + 1 + rounding))
    # Train has too many: give the split with the larger deficit one more.
    while sum(counts) < least:
        counts[0 if both and asked[0] and excess(0) <= excess(1) else 1] += 1
    # Train has too few: take one from the split with the larger excess.
    while sum(counts) > most:
        gives = 1
        if both and counts[0] and (not counts[1] or excess(0) >= excess(1)):
            gives = 0 if not counts[1] or excess(0) > excess(1) else (turn + 1) % 2
        counts[gives] -= 1
    return counts


def _fraction(share: int | float | None, count: int, key: str) -> float:
    """Returns a share of `count` images, given as a fraction or a number, as a fraction."""
    if share is None:
        return _HELD_OUT
    if share >= count and share >= 1:
        raise UserError(f'{key}={share} must be less than the number of images, {count:,}')
    return share / count if share >= 1 else float(share)


def _distinct(names: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns distinct names, the index of each one's first occurrence, and each name's position.

    Indexing the distinct names with the positions gives the original names.
    """
    if len(set(names)) == len(names):
        return names, np.arange(len(names)), np.arange(len(names))
    # Number the names in the order of their first occurrence.
    place: dict[str, int] = {}
    inverse = np.array([place.setdefault(name, len(place)) for name in names], np.int64)
    _, first = np.unique(inverse, return_index=True)
    return list(place), first, inverse


def _strata(labels: np.ndarray) -> np.ndarray:
    """Returns the group of each example; every group is split separately.

    A group is a class, or with several labels per image a set of labels. Rare sets form one group.
    """
    if labels.ndim == 1:
        return labels
    _, sets, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    sets = sets.ravel()
    return np.where(counts[sets] < _RARE, -1, sets)


def _leave_one_for_train(labels: np.ndarray, parts: np.ndarray) -> None:
    """Moves one image of each class that is missing in train to train."""
    for k in np.flatnonzero(labels.any(0) & ~labels[parts == TRAIN].any(0)):
        parts[np.flatnonzero(labels[:, k])[0]] = TRAIN


def in_order(names: Iterable[str], rules: int, of_list: bool = False) -> tuple[str, ...]:
    """Sorts class names into the order of their labels.

    Args:
      names: the class names.
      rules: version 2 uses the natural order; version 1 sorts the classes of folders as text, and
        those of lists with numbers before words.
      of_list: True for the classes of a list.
    """
    names = set(names)
    _warn_of_similar_classes(names)
    if rules > 1:
        return tuple(sorted(names, key=natural))
    # Version 1.
    return tuple(sorted(names, key=_numbers_first if of_list else None))


def _warn_of_similar_classes(names: Iterable[str]) -> None:
    """Warns of names that look the same: with spaces around them, or other forms of Unicode."""
    known: dict[str, str] = {}
    for name in sorted(names):
        same = known.setdefault(unicodedata.normalize('NFC', name).strip(), name)
        if same != name:
            warn_once(
                f'{same!a} and {name!a} are different classes, though they differ only '
                'in spaces or in the form of Unicode'
            )


def natural(name: str) -> tuple[list[tuple[str, int, str]], str]:
    """Sort key of the natural order: 'class2' before 'class10', numbers before words."""
    # Text and numbers alternate; compare numbers by length, then digit by digit.
    parts = re.split(r'(\d+)', name)
    numbers = [''.join(str(int(c)) for c in part).lstrip('0') for part in parts[1::2]] + ['']
    pairs = zip(parts[::2], numbers, strict=True)
    return [(text, len(number), number) for text, number in pairs], name


def _numbers_first(label: str) -> tuple[bool, int, str]:
    """Sort key of a list's classes under version 1: numbers in numerical order, then words."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)


def _by_hash_alone(paths: Sequence[str]) -> np.ndarray:
    """Returns the splits of version 1, which depend only on the hash of each image's path."""
    low, high = _HELD_OUT, 2 * _HELD_OUT
    names = np.array([_path_hash(path) for path in paths], np.uint64)
    fractions = (hash64(names) >> np.uint64(11)) * 2.0**-53
    return np.select(
        [fractions < low, fractions < high], [TEST, VALIDATION], TRAIN
    ).astype(np.int8)  # fmt: skip


def _path_hash(path: str) -> int:
    """Hashes a path to 64 bits; must never change, because splits depend on it."""
    data = path.encode('utf-8', 'surrogateescape')
    return zlib.crc32(data) << 32 | zlib.adler32(data)
