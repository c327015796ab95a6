"""Figures beside the metrics: intervals, a test of two models, figures of each class, and the reliability diagram.

Every figure equals scikit-learn's on the same predictions (`tests/task/test_metrics.py`).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from vision.task.base import Task
from vision.task.metrics import RELIABILITY_BINS, Columns, bins_of

RESAMPLES = 1000
CONFIDENCE = 0.95


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


class Confusion(NamedTuple):
    """A confusion matrix by its cells that are not 0, row by row: 20,000 classes have 400 million cells.

    Attributes:
      rows: int64 [cells], the class of the examples.
      columns: int64 [cells], what they were taken for.
      counts: int64 [cells], how many there are.
      num_classes: K.
    """

    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray
    num_classes: int


class PerClass(NamedTuple):
    """The figures of each of K classes; NaN where a quotient has no examples below it.

    Attributes:
      support: int64 [K], examples of the class.
      predicted: int64 [K], examples that were taken for it.
      precision: float64 [K], of those taken for it, the fraction that are.
      recall: float64 [K], of its examples, the fraction that were found.
      f1: float64 [K], the harmonic mean of both.
    """

    support: np.ndarray
    predicted: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


class Reliability(NamedTuple):
    """The accuracy at each level of confidence: bins of equal width, (low, high].

    Attributes:
      examples: int64 [bins], how many.
      confidence: float64 [bins], mean probability of the class that was named; NaN if empty.
      accuracy: float64 [bins], the fraction that was right; NaN if empty.
    """

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def intervals(task: Task, columns: Columns, resamples: int = RESAMPLES) -> dict[str, list[float]]:
    """Confidence intervals (low, high) of 95 % for the metrics that have one, by the bootstrap."""
    statistics: dict[str, Any] = {}
    for name, metric in task.metrics.items():
        value = metric.of(columns)
        if metric.weighted is not None:
            statistics[name] = metric.weighted(columns)
        elif value is not None and np.ndim(value) and np.isfinite(value).all():
            statistics[name] = np.asarray(value)
    biased = [name for name in statistics if task.metrics[name].biased]
    count = len(columns['id'])
    drawn = bootstrap(count, statistics, biased, resamples=resamples)
    return {name: list(interval) for name, interval in drawn.items() if np.isfinite(interval).all()}


def bootstrap(
    n: int,
    statistics: Mapping[str, np.ndarray | Callable[[np.ndarray], float]],
    biased: Collection[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of 95 % by the bootstrap (Efron): percentiles over resampled examples.

    They hold for test examples drawn anew, not for a model trained anew. Where all examples are
    right, resampling finds no others, and the interval of an accuracy is a point.

    Args:
      n: the number of examples, N.
      statistics: by name, a value for each example [N], whose mean is the statistic, or a function of the
        examples' weights float64 [N].
      biased: statistics that resampling raises: it adds noise to each bin of a calibration error, and a mean
        of absolute values grows by noise. The growth is subtracted, so that the interval holds the figure.
      seed: of the resampling; the same seed gives the same intervals.
      resamples: how many.

    Returns:
      (low, high) by name.
    """
    means = {k: np.asarray(v, np.float64) for k, v in statistics.items() if not callable(v)}
    functions = {k: v for k, v in statistics.items() if callable(v)}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {k: [] for k in statistics}
    for _ in range(resamples):
        times = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        for name, values in means.items():
            drawn[name].append(float((times * values).sum()) / n)
        for name, function in functions.items():
            drawn[name].append(function(times))
    for name in biased:
        grown = float(np.mean(drawn[name])) - functions[name](np.ones(n))
        drawn[name] = [max(value - grown, 0.0) for value in drawn[name]]
    outside = 50 * (1 - CONFIDENCE)
    return {
        name: (float(low), float(high))
        for name, values in drawn.items()
        for low, high in [np.percentile(values, [outside, 100 - outside])]
    }


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


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> Confusion:
    """Counts how often each class was taken for which.

    Args:
      labels: int [N].
      predicted: int [N].
      num_classes: K.
    """
    cells, counts = np.unique(labels.astype(np.int64) * num_classes + predicted, return_counts=True)
    return Confusion(cells // num_classes, cells % num_classes, counts, num_classes)


def per_class(matrix: Confusion) -> PerClass:
    """Precision, recall and F1 of each class."""

    def total(classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.bincount(classes, counts, matrix.num_classes).astype(np.int64)

    right = matrix.rows == matrix.columns
    found = total(matrix.rows[right], matrix.counts[right])
    support, predicted = (total(of, matrix.counts) for of in (matrix.rows, matrix.columns))
    return PerClass(
        support=support,
        predicted=predicted,
        precision=_quotient(found, predicted),
        recall=_quotient(found, support),
        f1=_quotient(2 * found, support + predicted),
    )


def reliability(
    confidence: np.ndarray, correct: np.ndarray, bins: int = RELIABILITY_BINS
) -> Reliability:
    """The reliability diagram (Guo et al. 2017, "On calibration of modern neural networks", 2).

    Args:
      confidence: float64 [N], the probability of the class that was named.
      correct: bool [N].
      bins: how many, of equal width; the right edge belongs to a bin, and 0 to the first.
    """
    where = bins_of(confidence, bins)
    count = np.bincount(where, minlength=bins)
    return Reliability(
        examples=count,
        confidence=_quotient(np.bincount(where, confidence, bins), count),
        accuracy=_quotient(np.bincount(where, correct, bins), count),
    )


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    out = np.full(len(below), np.nan)
    return np.divide(above, below, out=out, where=below > 0)
