"""True if two classifiers differ by more than chance, on the same test examples."""

from typing import NamedTuple

import numpy as np


class McNemar(NamedTuple):
    """McNemar's test of two classifiers.

    Attributes:
      only_first: examples that only the first has right.
      only_second: examples that only the second has right.
      p_value: how likely a split of these at least so uneven is, if both are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """The exact test (McNemar 1947; Dietterich 1998): two-sided, binomial.

    It says nothing of training anew with another seed.

    Args:
      first: bool [N], which examples the first has right.
      second: bool [N], the same examples, for the second.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    p_value = float(binomtest(only_first, n, 0.5).pvalue) if n else 1.0
    return McNemar(only_first, only_second, p_value)
