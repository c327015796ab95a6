"""Mapping between a data set's classes and a run's logits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vision.core.errors import UserError, nearest
from vision.data.source import Source

# In TFDS, ImageNet-A and ImageNet-R list all 1,000 classes of ImageNet, but each has images of only
# these 200 classes. The authors of the data sets compare only the logits of these classes:
# Hendrycks et al. 2021, arXiv:1907.07174 and 2006.16241 (`eval.py`).
SUBSETS: dict[str, tuple[int, ...]] = {
    'imagenet_a': (
        6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96,
        97, 99, 105, 107, 108, 110, 113, 124, 125, 130, 132, 143, 144, 150, 151, 207, 234, 235, 254,
        277, 283, 287, 291, 295, 298, 301, 306, 307, 308, 309, 310, 311, 313, 314, 315, 317, 319,
        323, 324, 326, 327, 330, 334, 335, 336, 347, 361, 363, 372, 378, 386, 397, 400, 401, 402,
        404, 407, 411, 416, 417, 420, 425, 428, 430, 437, 438, 445, 456, 457, 461, 462, 470, 472,
        483, 486, 488, 492, 496, 514, 516, 528, 530, 539, 542, 543, 549, 552, 557, 561, 562, 569,
        572, 573, 575, 579, 589, 606, 607, 609, 614, 626, 627, 640, 641, 642, 643, 658, 668, 677,
        682, 684, 687, 701, 704, 719, 736, 746, 749, 752, 758, 763, 765, 768, 773, 774, 776, 779,
        780, 786, 792, 797, 802, 803, 804, 813, 815, 820, 823, 831, 833, 835, 839, 845, 847, 850,
        859, 862, 870, 879, 880, 888, 890, 897, 900, 907, 913, 924, 932, 933, 934, 937, 943, 945,
        947, 951, 954, 956, 957, 959, 971, 972, 980, 981, 984, 986, 987, 988,
    ),
    'imagenet_r': (
        1, 2, 4, 6, 8, 9, 11, 13, 22, 23, 26, 29, 31, 39, 47, 63, 71, 76, 79, 84, 90, 94, 96, 97,
        99, 100, 105, 107, 113, 122, 125, 130, 132, 144, 145, 147, 148, 150, 151, 155, 160, 161,
        162, 163, 171, 172, 178, 187, 195, 199, 203, 207, 208, 219, 231, 232, 234, 235, 242, 245,
        247, 250, 251, 254, 259, 260, 263, 265, 267, 269, 276, 277, 281, 288, 289, 291, 292, 293,
        296, 299, 301, 308, 309, 310, 311, 314, 315, 319, 323, 327, 330, 334, 335, 337, 338, 340,
        341, 344, 347, 353, 355, 361, 362, 365, 366, 367, 368, 372, 388, 390, 393, 397, 401, 407,
        413, 414, 425, 428, 430, 435, 437, 441, 447, 448, 457, 462, 463, 469, 470, 471, 472, 476,
        483, 487, 515, 546, 555, 558, 570, 579, 583, 587, 593, 594, 596, 609, 613, 617, 621, 629,
        637, 657, 658, 701, 717, 724, 763, 768, 774, 776, 779, 780, 787, 805, 812, 815, 820, 824,
        833, 847, 852, 866, 875, 883, 889, 895, 907, 928, 931, 932, 933, 934, 936, 937, 943, 945,
        947, 948, 949, 951, 953, 954, 957, 963, 965, 967, 980, 981, 983, 988,
    ),
}  # fmt: skip


class Classes(NamedTuple):
    """Positions of a data set's classes among those of a run.

    Attributes:
      names: names of the K' compared classes.
      logits: int64 [K'], positions among the run's logits; None for all logits in the run's order.
      labels: int64, indexed by the data set's label: position in `names`, −1 for an excluded class.
    """

    names: tuple[str, ...]
    logits: np.ndarray | None
    labels: np.ndarray

    def check(self, labels: np.ndarray, source: Source) -> None:
        """Checks the data set's labels, int [N] or float [N, K].

        Raises:
          UserError: an example has no label or an excluded one.
        """
        # Multi-label data may have any set of labels.
        if labels.ndim == 2:
            return
        known = (labels >= 0) & (labels < len(self.labels))
        found = np.where(known, self.labels[np.where(known, labels, 0)], -1)
        if (found < 0).any():
            label = int(labels[found < 0][0])
            what = source.class_names[label] if 0 <= label < len(self.labels) else label
            raise UserError(
                f'{source.name}: an example has the label {what!r}, which is not among the '
                f'{len(self.names)} compared classes'
            )


def match(run_names: tuple[str, ...], source: Source, which: str = 'data') -> Classes:
    """Finds a data set's classes among a run's, by name.

    Some data sets have numbers as class names: folders 0 … 9, 'cifar10_corrupted' of TFDS, an
    `.npz`. If the run's class names are not numbers, these numbers are used as indices of the run's
    classes. If they are the indices of the run's first classes, all logits are compared. For
    ImageNet-A and -R, 200 of 1,000 classes are compared.

    Args:
      run_names: names of the run's K classes.
      source: the data set.
      which: 'data' compares only the logits of the data set's classes, as the authors of such data
        sets do; 'all' compares all logits of the run.

    Raises:
      UserError: the data set has a class that the run does not have.
    """
    # No mapping is needed if the data set has the run's classes in the run's order.
    places, kept = _places(run_names, source), _subset(source)
    first = np.array_equal(places, np.arange(len(places)))
    nameless = _indices(source.class_names) is not None
    same = first and (nameless or len(places) == len(run_names))
    if which == 'all' or (same and kept is None):
        return Classes(run_names, None, places)
    # Compare the logits of the data set's own classes only.
    kept = np.arange(len(places)) if kept is None else kept
    # Excluded labels map to −1.
    labels = np.full(len(places), -1)
    labels[kept] = np.arange(len(kept))
    return Classes(tuple(run_names[i] for i in places[kept]), places[kept], labels)


def _subset(source: Source) -> np.ndarray | None:
    """Returns the labels that occur in a data set with fewer classes than it lists, or None."""
    name = source.name.replace('/', ':').split(':')[0]
    if name in SUBSETS and len(source.class_names) == 1000:
        return np.array(SUBSETS[name])
    return None


def _places(run_names: tuple[str, ...], source: Source) -> np.ndarray:
    """Returns the position of each of the data set's classes among the run's."""
    names = source.class_names
    index = {name: i for i, name in enumerate(run_names)}
    missing = [name for name in names if name not in index]
    if missing:
        # Match by number if the data set or the run has numbers as class names.
        own, known = _indices(names), _indices(run_names)
        if own is not None and known is None and own.max() < len(run_names):
            return own
        if own is not None and known is not None and np.isin(own, known).all():  # '07' is '7'
            return np.array([known.tolist().index(i) for i in own])
        if known is not None and own is None and len(names) == len(run_names) == known.max() + 1:
            return np.argsort(known)
        guess = nearest(missing[0], run_names)
        hint = f' (did you mean {guess!r}?)' if guess else ''
        raise UserError(
            f'{source.name}: {len(missing)} of its {len(names)} classes are not among the '
            f"{len(run_names)} of the run, the first is {missing[0]!r}{hint}. The run's first "
            f'classes are {", ".join(run_names[:5])}'
        )
    return np.array([index[name] for name in names])


def _indices(names: Sequence[str]) -> np.ndarray | None:
    """Converts names to numbers, int64 [K]; None unless all are different numbers."""
    if not all(name.isdecimal() and len(name) < 10 for name in names):
        return None
    numbers = np.array([int(name) for name in names], np.int64)
    return numbers if len(set(numbers.tolist())) == len(names) else None
