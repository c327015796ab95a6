"""The order of training examples, which depends only on (seed, epoch, id), and stratified hold-out.

Integer hashes determine the order, so it is the same on every machine and version of NumPy.
The epochs form one endless stream of examples. Position p of the stream is example
`epoch_order(seed, p // n, n)[p % n]`, and batch `step` holds the positions
`step * B … (step + 1) * B − 1`. A resumed run therefore computes its next batch directly.

With repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335; torchvision's recipe V2) each id
takes `repeats` consecutive positions. An epoch still has n positions, so it shows only the first
n / repeats ids of its order.
"""

import functools

import numpy as np

from vision.core.errors import UserError

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_SALT = 0x5B11  # makes the hashes of `hold_out` independent of those of the order


def hash64(*values: int | np.ndarray) -> np.ndarray:
    """Hashes integers (scalars or broadcastable arrays) elementwise to uint64.

    Applies SplitMix64's finaliser (Steele et al. 2014) to the values in turn.
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
    """Returns the ids 0 … n − 1 in the order of an epoch, int64 [n], read-only."""
    order = np.argsort(hash64(seed, epoch, np.arange(n)), kind='stable')
    order.flags.writeable = False
    return order


def batch_ids(
    seed: int, n: int, batch_size: int, step: int, repeats: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of a global training batch.

    Args:
      seed: seed of the run.
      n: number of examples in the split.
      batch_size: size B of the global batch.
      step: number of the step, from 0.
      repeats: number of positions that each id takes in its epoch.

    Returns:
      The ids, int64 [B], and the number of the view of each, int64 [B], which is part of its
      augmentation key. An id never has the same view number twice. Without repeats the view number
      is the epoch; a batch may span several epochs.
    """
    positions = step * batch_size + apart(batch_size, repeats)
    epochs, places = positions // n, positions % n
    ids = np.empty(batch_size, np.int64)
    # Find the epochs that the batch belongs to.
    first, last = step * batch_size // n, ((step + 1) * batch_size - 1) // n
    # Look up the ids epoch by epoch.
    for epoch in range(first, last + 1):
        here = epochs == epoch
        ids[here] = epoch_order(seed, epoch, n)[places[here] // repeats]
    return ids, epochs * repeats + places % repeats


@functools.lru_cache(maxsize=4)
def apart(batch_size: int, repeats: int) -> np.ndarray:
    """Returns for each row of a batch its position in the batch's part of the stream, int64 [B].

    The array is read-only. The rows with views of one image lie far apart, because mixup would
    otherwise mix an image with itself in the neighbouring row. torchvision similarly sends the
    views to different GPUs.
    """
    rows = np.concatenate([np.arange(first, batch_size, repeats) for first in range(repeats)])
    rows.flags.writeable = False
    return rows


def eval_ids(n: int, batch_size: int, step: int, part: int = 0, parts: int = 1) -> np.ndarray:
    """Returns the ids in one host's share of an evaluation batch.

    Batches hold the ids in order. The examples of the last batch are divided among the hosts, so
    that the hosts' shares of the split differ by at most one example.

    Args:
      n: number of examples in the split.
      batch_size: size of the global batch.
      step: number of the batch, from 0.
      part: number of the host, from 0.
      parts: number of hosts.

    Returns:
      Ids int64 [batch_size / parts], with −1 for padding.
    """
    # Divide what remains of the split among the hosts.
    remaining = min(batch_size, n - step * batch_size)
    share, extra = divmod(remaining, parts)
    count = share + (part < extra)
    ids = np.full(batch_size // parts, -1)
    ids[:count] = step * batch_size + part * share + min(part, extra) + np.arange(count)
    return ids


def view_counters(epochs: np.ndarray, views: int) -> np.ndarray:
    """Returns the numbers for the augmentation keys of examples with several views of an image.

    Args:
      epochs: the view numbers from `batch_ids`, int [B].
      views: number V of views in an example.

    Returns:
      epoch · V + view, int [B, V]; an id never has the same number twice.
    """
    return epochs[:, None] * views + np.arange(views)


def hold_out(labels: np.ndarray, count: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a part of a split, stratified by class.

    Args:
      labels: int [N]; or 0 and 1 [N, K], where each distinct set of labels counts as a class.
      count: number of examples to hold out; a number below 1 is a fraction of N.

    Returns:
      The remaining ids and the held-out ids, int64, each in ascending order. A class of n examples
      loses n · count / N of them, rounded down or up so that the sum is exactly `count`. With one
      label per image, a class loses all its examples only if the sum requires it.

    Raises:
      UserError: `count` is negative or leaves no examples.
    """
    # Give each class the rounded-down share of its size.
    n = len(labels)
    total = round(count * n) if 0 < count < 1 else int(count)
    if total < 0 or total >= n:
        raise UserError(f'cannot hold {count} out of {n} examples')
    _, first, classes, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True, axis=0
    )
    shares = sizes * total / n
    quota = np.floor(shares).astype(int)
    # Round up the largest remainders, those that take a whole class last. Equal remainders are
    # ordered by class, or for sets of labels, many of which are rare, by a hash.
    ties = np.arange(len(sizes)) if labels.ndim == 1 else hash64(_SALT, first)
    all_of_it = (quota + 1 >= sizes) & (labels.ndim == 1)
    largest_remainders = np.lexsort((ties, quota - shares, all_of_it, quota == shares))
    quota[largest_remainders[: total - quota.sum()]] += 1
    # Hold out the examples with the lowest hashes of each class.
    held = []
    for cls, take in enumerate(quota):
        ids = np.flatnonzero(classes.ravel() == cls)
        held.append(ids[np.argsort(hash64(_SALT, ids), kind='stable')[:take]])
    out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(n), out), out.astype(np.int64)
