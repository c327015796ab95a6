"""Splits that do not depend on a random generator's version: chosen by a hash of the id."""

import numpy as np

from vision.core.errors import UserError
from vision.data.order import hash64

_SALT = 0x5B11


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
