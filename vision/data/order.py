"""The order of the examples and their splits: functions of (seed, epoch, id), and of the id, and of nothing else.

Plain integer arithmetic, so the order is the same on every machine, Python and NumPy. Epochs
follow one another without a gap: position p of the endless stream is example
`epoch_order(seed, p // n, n)[p % n]`, and batch `step` holds the positions
`step * B … (step + 1) * B − 1`. To resume is to compute, not to replay.

With repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335; torchvision's recipe V2) each id
stands in `repeats` positions that follow one another, and an epoch still has n of them: it shows the
first n / repeats ids of its order.
"""

import functools

import numpy as np

from vision.core.errors import UserError

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_SALT = 0x5B11  # of splits


def hash64(*values: int | np.ndarray) -> np.ndarray:
    """Hashes integers (scalars or arrays that broadcast) to uint64, elementwise.

    SplitMix64's finaliser (Steele et al. 2014) over the values in turn.
    """
    state = np.zeros(np.broadcast_shapes(*(np.shape(v) for v in values)), np.uint64)
    with np.errstate(over='ignore'):
        for value in values:
            state = (state ^ np.asarray(value).astype(np.uint64)) + _GAMMA
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Returns the ids 0 … n − 1 in the order of that epoch: int64 [n], read-only."""
    order = np.argsort(hash64(seed, epoch, np.arange(n)), kind='stable')
    order.flags.writeable = False
    return order


def batch_ids(
    seed: int, n: int, batch_size: int, step: int, repeats: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the global training batch of `step` holds.

    Args:
      seed: of the run.
      n: number of examples in the split.
      batch_size: of the global batch, B.
      step: counted from 0.
      repeats: in how many positions of its epoch an id stands.

    Returns:
      ids int64 [B] and, int64 [B], which view of its image each one is: no two positions of the
      stream that hold an id share its view, which augmentation is keyed on. Without repeats it is
      the epoch (a batch may lie across two epochs or more).
    """
    positions = step * batch_size + apart(batch_size, repeats)
    epochs, places = positions // n, positions % n
    ids = np.empty(batch_size, np.int64)
    first, last = step * batch_size // n, ((step + 1) * batch_size - 1) // n
    for epoch in range(first, last + 1):
        here = epochs == epoch
        ids[here] = epoch_order(seed, epoch, n)[places[here] // repeats]
    return ids, epochs * repeats + places % repeats


@functools.lru_cache(maxsize=4)
def apart(batch_size: int, repeats: int) -> np.ndarray:
    """The positions within a batch, int64 [B], read-only, in the order in which its rows hold them.

    The views of an image lie far apart, as torchvision deals them out to different GPUs: mixup, which
    mixes neighbours, would else mix an image with itself.
    """
    rows = np.concatenate([np.arange(first, batch_size, repeats) for first in range(repeats)])
    rows.flags.writeable = False
    return rows


def eval_ids(n: int, batch_size: int, step: int, part: int = 0, parts: int = 1) -> np.ndarray:
    """Returns one host's share of an evaluation batch: int64 [batch_size / parts], −1 for padding.

    Batches hold the ids in order. What remains for the last one is shared among the hosts, so that
    their shares of the split differ by one example at most.

    Args:
      n: number of examples in the split.
      batch_size: of the global batch.
      step: counted from 0.
      part: which host, from 0.
      parts: how many hosts there are.
    """
    remaining = min(batch_size, n - step * batch_size)
    share, extra = divmod(remaining, parts)
    count = share + (part < extra)
    ids = np.full(batch_size // parts, -1)
    ids[:count] = step * batch_size + part * share + min(part, extra) + np.arange(count)
    return ids


def view_counters(epochs: np.ndarray, views: int) -> np.ndarray:
    """The numbers that augmentation is keyed on where each slot of a batch holds several views of its image.

    Args:
      epochs: int [B], as `batch_ids` returns them.
      views: V, in how many draws each image comes.

    Returns:
      int [B, V], no two of which are the same for an id: epoch · V + view. The epochs for V = 1.
    """
    return epochs[:, None] * views + np.arange(views)


def hold_out(labels: np.ndarray, count: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Holds examples out of a split, each class in proportion.

    Args:
      labels: int [N]; or 0 and 1 [N, K], where each set of labels that occurs counts as a class.
      count: how many to hold out; below 1 it is a fraction of N.

    Returns:
      The ids that stay and the ids held out, each ascending: int64, disjoint, together 0 … N − 1.
      A class of n examples loses n · count / N of them, rounded down or up so that the sum is
      exactly `count`; down where it would lose all, as far as that can be.

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
    all_of_it = (quota + 1 >= sizes) & (labels.ndim == 1)
    largest_remainders = np.lexsort((ties, quota - shares, all_of_it, quota == shares))
    quota[largest_remainders[: total - quota.sum()]] += 1
    held = []
    for cls, take in enumerate(quota):
        ids = np.flatnonzero(classes.ravel() == cls)
        held.append(ids[np.argsort(hash64(_SALT, ids), kind='stable')[:take]])
    out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(n), out), out.astype(np.int64)
