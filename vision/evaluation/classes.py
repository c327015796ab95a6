"""Which of a run's logits are compared on a data set, and what its labels are among them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vision.core.errors import UserError, nearest
from vision.data.source import Source
from vision.evaluation.subsets import SUBSETS


class Classes(NamedTuple):
    """How a data set's classes are found among a run's.

    Attributes:
      names: of the classes that are told apart, K' of them.
      logits: int64 [K'], where they are among the run's logits; None for all, as they are.
      labels: int64, by the data set's label: the position in `names`, −1 for one that is left out.
    """

    names: tuple[str, ...]
    logits: np.ndarray | None
    labels: np.ndarray

    def check(self, labels: np.ndarray, source: Source) -> None:
        """Checks the data set's labels, int [N] or float [N, K].

        Raises:
          UserError: an example has no label, or one that is left out.
        """
        if labels.ndim == 2:
            return
        known = (labels >= 0) & (labels < len(self.labels))
        found = np.where(known, self.labels[np.where(known, labels, 0)], -1)
        if (found < 0).any():
            label = int(labels[found < 0][0])
            what = source.class_names[label] if 0 <= label < len(self.labels) else label
            raise UserError(
                f'{source.name}: an example has the label {what!r}, which is not among the '
                f'{len(self.names)} classes that are compared'
            )


def match(run_names: tuple[str, ...], source: Source, which: str = 'data') -> Classes:
    """Finds a data set's classes among a run's, by name.

    Numbers that the run does not have are no names but indices: of a data set that has no others
    (folders 0 … 9, 'cifar10_corrupted' of TFDS, an `.npz`) those of the run's classes. Where they are its
    first ones, all are compared. ImageNet-A and -R have 200 of 1,000.

    Args:
      run_names: K names.
      source: the data set.
      which: 'data': only the logits of its own classes are compared, as the authors of such sets
        do; 'all': all of the run's.

    Raises:
      UserError: it has a class that the run does not know.
    """
    places, kept = _places(run_names, source), _subset(source)
    first = np.array_equal(places, np.arange(len(places)))
    nameless = _indices(source.class_names) is not None
    same = first and (nameless or len(places) == len(run_names))
    if which == 'all' or (same and kept is None):
        return Classes(run_names, None, places)
    kept = np.arange(len(places)) if kept is None else kept
    labels = np.full(len(places), -1)
    labels[kept] = np.arange(len(kept))
    return Classes(tuple(run_names[i] for i in places[kept]), places[kept], labels)


def _subset(source: Source) -> np.ndarray | None:
    """The labels that a data set of TFDS has, where its class list is longer."""
    name = source.name.replace('/', ':').split(':')[0]
    if name in SUBSETS and len(source.class_names) == 1000:
        return np.array(SUBSETS[name])
    return None


def _places(run_names: tuple[str, ...], source: Source) -> np.ndarray:
    """Where each of the data set's classes is among the run's."""
    names = source.class_names
    index = {name: i for i, name in enumerate(run_names)}
    missing = [name for name in names if name not in index]
    if missing:
        own, theirs = _indices(names), _indices(run_names)
        if own is not None and theirs is None and own.max() < len(run_names):
            return own
        if own is not None and theirs is not None and np.isin(own, theirs).all():  # '07' is '7'
            return np.array([theirs.tolist().index(i) for i in own])
        if theirs is not None and own is None and len(names) == len(run_names) == theirs.max() + 1:
            return np.argsort(theirs)
        guess = nearest(missing[0], run_names)
        hint = f' (did you mean {guess!r}?)' if guess else ''
        raise UserError(
            f'{source.name}: {len(missing)} of its {len(names)} classes are not among the '
            f"{len(run_names)} of the run, the first is {missing[0]!r}{hint}. The run's begin with "
            f'{", ".join(run_names[:5])}'
        )
    return np.array([index[name] for name in names])


def _indices(names: Sequence[str]) -> np.ndarray | None:
    """The numbers that the names are, int64 [K]; None if they are not, or not different ones."""
    if not all(name.isdecimal() and len(name) < 10 for name in names):
        return None
    numbers = np.array([int(name) for name in names], np.int64)
    return numbers if len(set(numbers.tolist())) == len(names) else None
