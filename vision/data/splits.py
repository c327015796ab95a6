"""Splits that do not depend on a random generator's version: chosen by a hash of the id."""

import math

import numpy as np

from vision.core.errors import UserError
from vision.data.order import hash64

_SALT = 0x5B11
TRAIN, VALIDATION, TEST = range(3)


def hold_out(labels: np.ndarray, count: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Holds examples out of a split, each class in proportion.

    Args:
      labels: int [N]; or 0 and 1 [N, K], where each set of labels that occurs counts as a class.
      count: how many to hold out; below 1 it is a fraction of N.

    Returns:
      The ids that stay and the ids held out, each ascending: int64, disjoint, together 0 … N − 1.
      A class of n examples loses n · count / N of them, rounded down or up so that the sum is
      exactly `count`.

    Raises:
      UserError: count is negative or leaves nothing.
    """
    n = len(labels)
    total = round(count * n) if 0 < count < 1 else int(count)
    if total < 0 or total >= n:
        raise UserError(f'cannot hold {count} out of {n} examples')
    _, first, classes, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True, axis=0
    )
    shares = sizes * total / n
    quota = np.floor(shares).astype(int)
    # Of equal remainders the first class's; sets of labels, of which many are rare, in no order.
    ties = np.arange(len(sizes)) if labels.ndim == 1 else hash64(_SALT, first)
    largest_remainders = np.lexsort((ties, quota - shares))
    quota[largest_remainders[: total - quota.sum()]] += 1
    held = []
    for cls, take in enumerate(quota):
        ids = np.flatnonzero(classes.ravel() == cls)
        held.append(ids[np.argsort(hash64(_SALT, ids), kind='stable')[:take]])
    out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(n), out), out.astype(np.int64)


def by_rank(
    hashes: np.ndarray,
    classes: np.ndarray,
    validation: float,
    test: float,
    fold: tuple[int, int] | None = None,
) -> np.ndarray:
    """Splits each class by the rank of its examples' hashes: stratified, and stable when examples are added.

    Test has the lowest ranks of a class and validation the highest, so that few examples change sides
    when others come in between, and none goes from one to the other.

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
    order = np.lexsort((hashes, classes))
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    for turn, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        first = 0
        tested: int | None = None
        if fold is not None:
            # Small classes do not fill every part: each begins with another one.
            part = (fold[0] - 1 + turn) % fold[1]
            first = part * size // fold[1]
            tested = min((part + 1) * size // fold[1] - first, size - 1)
        tests, validated = _counts(size, validation, test, tested, turn)
        ranked = np.roll(order[start : start + size], -first)
        parts[ranked[:tests]] = TEST
        parts[ranked[size - validated :]] = VALIDATION
    return parts


def _counts(
    size: int, validation: float, test: float, tested: int | None, turn: int
) -> tuple[int, int]:
    """How many of a class are for test and for validation; see `by_rank`.

    Args:
      size: of the class.
      validation: its share.
      test: its share.
      tested: the number for test where it is given.
      turn: which of two equal claims on the only example that can be spared has it: even or odd.
    """
    asked = [size * test if tested is None else tested, size * validation]
    counts = [max(1, math.floor(a + 0.5)) if a else 0 for a in asked]
    most = min(size - 1, math.floor(sum(asked) + 1 + 1e-9))  # train, too, has its share within one
    while sum(counts) > most:
        excess = [c - a for c, a in zip(counts, asked, strict=True)]
        if tested is not None or not counts[0]:
            gives = 1
        elif not counts[1] or excess[0] > excess[1]:
            gives = 0
        else:
            gives = 1 if excess[1] > excess[0] else (turn + 1) % 2
        counts[gives] -= 1
    return counts[0], counts[1]
