"""Confidence intervals, McNemar's test, per-class figures and the reliability diagram.

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
    """Result of McNemar's test of two classifiers.

    Attributes:
      only_first: number of examples that only the first classifies correctly.
      only_second: number of examples that only the second classifies correctly.
      p_value: probability of a difference at least this large if both are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


class Confusion(NamedTuple):
    """A sparse confusion matrix, row by row.

    A dense matrix of 20,000 classes would have 400 million cells.

    Attributes:
      rows: int64 [cells], true class.
      columns: int64 [cells], predicted class.
      counts: int64 [cells], number of examples, above 0.
      num_classes: K.
    """

    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray
    num_classes: int


class PerClass(NamedTuple):
    """Precision, recall and F1 of each of K classes; NaN where the denominator is 0.

    Attributes:
      support: int64 [K], number of examples of the class.
      predicted: int64 [K], number of examples predicted as the class.
      precision: float64 [K], fraction of the predicted examples that belong to the class.
      recall: float64 [K], fraction of the class's examples that were predicted as the class.
      f1: float64 [K], harmonic mean of precision and recall.
    """

    support: np.ndarray
    predicted: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


class Reliability(NamedTuple):
    """Accuracy by confidence, in bins (low, high] of equal width.

    Attributes:
      examples: int64 [bins], number of examples.
      confidence: float64 [bins], mean probability of the predicted class; NaN if empty.
      accuracy: float64 [bins], fraction of correct predictions; NaN if empty.
    """

    examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def intervals(task: Task, columns: Columns, resamples: int = RESAMPLES) -> dict[str, list[float]]:
    """Returns bootstrap 95 % confidence intervals (low, high) of the metrics that have one."""
    statistics: dict[str, Any] = {}
    for name, metric in task.metrics.items():
        value = metric.of(columns)
        # A mean is resampled from its values, another metric with its function of weights.
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
    """Computes 95 % confidence intervals by the percentile bootstrap (Efron) over examples.

    The intervals reflect the choice of test examples, not the variation between training runs. If
    all predictions are correct, they are also correct in every resample, and the interval of the
    accuracy is a single point.

    Args:
      n: number of examples, N.
      statistics: by name, one value per example [N], whose mean is the statistic, or a function of
        example weights float64 [N].
      biased: names of statistics that resampling increases. Resampling adds noise to each bin of a
        calibration error, and noise increases a mean of absolute values. The mean increase is
        subtracted, so that the interval contains the statistic.
      seed: seed of the resampling; the same seed gives the same intervals.
      resamples: number of resamples.

    Returns:
      (low, high) by name.
    """
    # Means are resampled as weighted sums, which is faster than calling a function.
    means = {k: np.asarray(v, np.float64) for k, v in statistics.items() if not callable(v)}
    functions = {k: v for k, v in statistics.items() if callable(v)}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {k: [] for k in statistics}
    for _ in range(resamples):
        # Resampling with replacement is a draw of integer weights.
        times = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        for name, values in means.items():
            drawn[name].append(float((times * values).sum()) / n)
        for name, function in functions.items():
            drawn[name].append(function(times))
    # Subtract the bias, which means of values do not have.
    for name in functions.keys() & set(biased):
        grown = float(np.mean(drawn[name])) - functions[name](np.ones(n))
        drawn[name] = [max(value - grown, 0.0) for value in drawn[name]]
    # Take the percentiles on both sides.
    outside = 50 * (1 - CONFIDENCE)
    return {
        name: (float(low), float(high))
        for name, values in drawn.items()
        for low, high in [np.percentile(values, [outside, 100 - outside])]
    }


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test, two-sided and binomial (McNemar 1947; Dietterich 1998).

    The test compares two trained models, and does not account for other training seeds.

    Args:
      first: bool [N], whether the first classifier is correct.
      second: bool [N], the same for the second, on the same examples.
    """
    from scipy.stats import binomtest

    # Only examples on which the two disagree count.
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    p_value = float(binomtest(only_first, n, 0.5).pvalue) if n else 1.0
    return McNemar(only_first, only_second, p_value)


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> Confusion:
    """Counts the examples of each class by predicted class.

    Args:
      labels: int [N].
      predicted: int [N].
      num_classes: K.
    """
    # Encode each pair (label, prediction) as one number, and count the numbers.
    cells, counts = np.unique(labels.astype(np.int64) * num_classes + predicted, return_counts=True)
    return Confusion(cells // num_classes, cells % num_classes, counts, num_classes)


def per_class(matrix: Confusion) -> PerClass:
    """Returns precision, recall and F1 of each class."""

    def total(classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.bincount(classes, counts, matrix.num_classes).astype(np.int64)

    # The diagonal has the correct predictions.
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
    """Computes the reliability diagram (Guo et al. 2017, section 2).

    Args:
      confidence: float64 [N], probability of the predicted class.
      correct: bool [N].
      bins: number of bins of equal width. Bins include their right edge, the first also 0.
    """
    # Mean confidence and accuracy in each bin.
    where = bins_of(confidence, bins)
    count = np.bincount(where, minlength=bins)
    return Reliability(
        examples=count,
        confidence=_quotient(np.bincount(where, confidence, bins), count),
        accuracy=_quotient(np.bincount(where, correct, bins), count),
    )


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Returns above / below, NaN where below is 0."""
    out = np.full(len(below), np.nan)
    return np.divide(above, below, out=out, where=below > 0)
