"""Splits and the order of classes of folders and lists: names, shares, folds, rules.

Two versions of the rules are kept, so that a run that was begun under the older one keeps its splits:
no image that it learned from is ever tested.
"""

import math
import re
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
TRAIN, VALIDATION, TEST = range(3)
_NAMES = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid'),
    'test': ('test', 'testing'),
}  # what others call them
_NAMED = 5  # classes that a message names
_HELD_OUT = 0.1  # of each class, for validation and for test, where nothing else is said
_RARE = 10  # sets of labels of fewer images are split together

Share = int | float | str | None


class Shares:
    """Shares, a fold and the version of the rules, for splits that are not given."""

    def __init__(self, validation: Share, test: Share, fold: str | None, rules: int):
        """Reads the keys of `config.data` that have these names."""
        self.given = {'validation': validation, 'test': test, 'fold': fold}
        self.rules = rules
        self._shares = {
            'validation': parse_share(validation, 'data.validation'),
            'test': parse_share(test, 'data.test'),
        }
        self._fold = None if fold is None else parse_fold(fold)
        if fold is not None and test is not None:
            raise UserError('data.fold and data.test: give one of them; the fold is the test split')
        if rules == 1:
            self.refuse('data.rules=1 has splits of its own', 'validation', 'test', 'fold')

    def choose(
        self,
        name: str,
        split: str,
        classes: tuple[str, ...],
        images: Sequence[tuple[str, Any]],
        parts: np.ndarray,
    ) -> FileSource:
        """The images of a split; warns of classes that have none in it.

        Args:
          name: of the folder or list.
          split: of `SPLITS`.
          classes: K names.
          images: whole paths, and labels.
          parts: the split of each image, as `parts` returns them.

        Raises:
          UserError: there are none.
        """
        name = f'{name}:{split}'
        if self._shares.get(split) == 0:
            raise NoSplitError(
                f'{name}: data.{split}={self.given[split]}, so there is no such split'
            )
        chosen = np.flatnonzero(parts == SPLITS.index(split)).tolist()
        source = source_of(name, classes, [images[i] for i in chosen])
        warn_of_empty_classes(source)
        return source

    def refuse(self, why: str, *keys: str) -> None:
        """Raises UserError if one of these keys is given, for it would have no effect."""
        for key in keys:
            if self.given[key] is not None:
                raise UserError(f'data.{key}={self.given[key]}: {why}; leave it out')

    def parts(
        self, images: Sequence[tuple[str, Any]], made: Sequence[str] = ('validation', 'test')
    ) -> np.ndarray:
        """The split of each image, as an index of SPLITS: int8 [N].

        Args:
          images: normal paths, relative to the root, and labels, int or float [K]. A path that is
            there several times has one split.
          made: the splits that are taken from train.

        Raises:
          UserError: they leave nothing for train.
        """
        if self.rules == 1:
            parts = _by_hash_alone([path for path, _ in images])
            parts[~np.isin(parts, [SPLITS.index(split) for split in made])] = TRAIN
            return parts
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
        hashes = hash64(np.array([_path_hash(name) for name in names], np.uint64))
        found = by_rank(hashes, _strata(labels), validation, test, fold)
        if labels.ndim == 2:
            _leave_one_for_train(labels, found)
        return found[inverse]


def check_split(split: str) -> None:
    """Raises UserError unless it is one of `SPLITS`."""
    if split not in SPLITS:
        raise unknown('split', split, SPLITS)


def split_named(text: str) -> str | None:
    """The split that a folder's name or a cell of a list means, of `SPLITS`; None if it is no name of one."""
    return next((split for split, names in _NAMES.items() if text.lower() in names), None)


def preferred(names: Iterable[str]) -> list[str]:
    """Names of one split, the one that is taken first: 'val' before 'valid'."""
    order = [name for names in _NAMES.values() for name in names]
    return sorted(names, key=lambda name: order.index(name.lower()))


def source_of(name: str, classes: tuple[str, ...], images: Sequence[tuple[str, Any]]) -> FileSource:
    """A source of images: whole paths, and labels; UserError if there are none."""
    if not images:
        raise UserError(f'{name}: the split has no examples')
    paths, labels = zip(*images, strict=True)
    return FileSource(name, classes, paths, as_labels(np.array(labels)))


def warn_of_empty_classes(source: Source) -> None:
    """Warns of classes that have no image in a split."""
    labels, names = source.labels, source.class_names
    found = labels.sum(0) if source.multi_label else np.bincount(labels, minlength=len(names))
    if without := [names[i] for i in np.flatnonzero(found == 0)]:
        count = '1 class has' if len(without) == 1 else f'{len(without)} classes have'
        warn_once(f'{source.name}: {count} no image in this split: {some_of(without)}')


def some_of(names: Sequence[str]) -> str:
    """The first few names, for a message, and how many more there are."""
    more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(map(repr, names[:_NAMED])) + more


def by_rank(
    hashes: np.ndarray,
    classes: np.ndarray,
    validation: float,
    test: float,
    fold: tuple[int, int] | None = None,
) -> np.ndarray:
    """Splits each class by the rank of its examples' hashes: stratified, and stable when examples are added.

    Test has the lowest ranks of a class and validation the highest, so that few examples change sides
    when others come in between, and none goes from one to the other. How many they have is what the
    hashes alone would give them, as far as that is within one example of what was asked: when a tenth is
    added, 1.3 to 2.9 % of the old images change sides in classes of 12 to 100, 0.6 % in those of 500.

    Args:
      hashes: uint64 [N], one for each example's name.
      classes: int [N]; the numbers may have gaps.
      validation: share of each class, in [0, 1).
      test: likewise; together they are below 1.
      fold: (k, n) for test being the k-th of n parts instead, k from 1. The n parts are disjoint and
        together all examples, but for classes of one example, which train keeps.

    Returns:
      TRAIN, VALIDATION or TEST for each example, int8 [N]. Of a class each split has what was asked
      within one example: at least one if that leaves one for train, which always has one.
    """
    parts = np.full(len(hashes), TRAIN, np.int8)
    places = (hashes >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    order = np.lexsort((hashes, classes))
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    for turn, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        ranked = order[start : start + size]
        if fold is None:
            asked = size * test, size * validation
            here = places[ranked]
            near = int((here < test).sum()), int((here >= 1 - validation).sum())
        else:
            # Small classes do not fill every part: each begins with another one.
            part = (fold[0] - 1 + turn) % fold[1]
            first = part * size // fold[1]
            tests = min((part + 1) * size // fold[1] - first, size - 1)
            asked = tests, size * validation
            near = tests, math.floor(size * validation + 0.5)
            ranked = np.roll(ranked, -first)
        tested, validated = _counts(size, asked, near, fold is None, turn)
        parts[ranked[:tested]] = TEST
        parts[ranked[size - validated :]] = VALIDATION
    return parts


def _counts(
    size: int, asked: tuple[float, float], near: tuple[int, int], both: bool, turn: int
) -> list[int]:
    """The numbers of a class's examples for test and for validation; see `by_rank`.

    Args:
      size: of the class.
      asked: the share of each, in examples.
      near: how many each would have, which is taken as far as it is within one of what was asked.
      both: whether test may give way, too.
      turn: which of two equal claims on the only example that can be spared has it: even or odd.
    """
    rounding = 1e-9
    counts = [
        max(1, min(max(n, math.ceil(a - 1 - rounding)), math.floor(a + 1 + rounding))) if a else 0
        for n, a in zip(near, asked, strict=True)
    ]

    def excess(i: int) -> float:
        return counts[i] - asked[i]

    # Train, too, has its share within one example, and one at least.
    least = math.ceil(sum(asked) - 1 - rounding)
    most = min(size - 1, math.floor(sum(asked) + 1 + rounding))
    while sum(counts) < least:
        counts[0 if both and asked[0] and excess(0) <= excess(1) else 1] += 1
    while sum(counts) > most:
        gives = 1
        if both and counts[0] and (not counts[1] or excess(0) >= excess(1)):
            gives = 0 if not counts[1] or excess(0) > excess(1) else (turn + 1) % 2
        counts[gives] -= 1
    return counts


def _fraction(share: int | float | None, count: int, key: str) -> float:
    if share is None:
        return _HELD_OUT
    if share >= count and share >= 1:
        raise UserError(f'{key}={share}: there are {count:,} images to hold it out of')
    return share / count if share >= 1 else float(share)


def _distinct(names: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Distinct names, the index where each stands first, and of each name its place among them."""
    if len(set(names)) == len(names):
        return names, np.arange(len(names)), np.arange(len(names))
    place: dict[str, int] = {}
    inverse = np.array([place.setdefault(name, len(place)) for name in names], np.int64)
    _, first = np.unique(inverse, return_index=True)
    return list(place), first, inverse


def _strata(labels: np.ndarray) -> np.ndarray:
    """The groups that are split by themselves: each class; of several labels each set, rare ones together."""
    if labels.ndim == 1:
        return labels
    _, sets, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    sets = sets.ravel()
    return np.where(counts[sets] < _RARE, -1, sets)


def _leave_one_for_train(labels: np.ndarray, parts: np.ndarray) -> None:
    """Moves an image to train of each class that has none there."""
    for k in np.flatnonzero(labels.any(0) & ~labels[parts == TRAIN].any(0)):
        parts[np.flatnonzero(labels[:, k])[0]] = TRAIN


def in_order(names: Iterable[str], rules: int, of_list: bool = False) -> tuple[str, ...]:
    """The classes in the order of their labels.

    Args:
      names: of the classes.
      rules: under version 1 the classes of folders are sorted as text.
      of_list: whether they are a list's, which had numbers before words then.
    """
    if rules > 1:
        return tuple(sorted(names, key=natural))
    return tuple(sorted(names, key=_numbers_first if of_list else None))


def natural(name: str) -> tuple[list[tuple[str, int, str]], str]:
    """The key of the natural order of names: 'class2' before 'class10', numbers before words."""
    parts = re.split(r'(\d+)', name)
    numbers = [''.join(str(int(c)) for c in part).lstrip('0') for part in parts[1::2]] + ['']
    pairs = zip(parts[::2], numbers, strict=True)
    return [(text, len(number), number) for text, number in pairs], name


def _numbers_first(label: str) -> tuple[bool, int, str]:
    """The order of a list's classes under rules 1: '10' after '9' where labels are numbers."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)


def _by_hash_alone(paths: Sequence[str]) -> np.ndarray:
    """The splits of rules 1: each image's by itself, whatever other files there are."""
    low, high = _HELD_OUT, 2 * _HELD_OUT
    names = np.array([_path_hash(path) for path in paths], np.uint64)
    fractions = (hash64(names) >> np.uint64(11)) * 2.0**-53
    return np.select(
        [fractions < low, fractions < high], [TEST, VALIDATION], TRAIN
    ).astype(np.int8)  # fmt: skip


def _path_hash(path: str) -> int:
    data = path.encode('utf-8', 'surrogateescape')
    return zlib.crc32(data) << 32 | zlib.adler32(data)
