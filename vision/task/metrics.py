"""Metrics of a split, computed from the columns of its examples with NumPy, with sums in float64.

Every metric equals scikit-learn's on the same predictions (`tests/task/test_metrics.py`).
"""

import dataclasses
import math
import types
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from vision.core.errors import UserError, unknown
from vision.core.text import described, without_nan

if TYPE_CHECKING:
    from vision.task.base import Task

RELIABILITY_BINS = 15  # Guo et al. 2017, section 2

Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of a split. All code that computes, shows or compares a metric uses this entry.

    Attributes:
      of: function of the columns (`Task.answers`, gathered over the split, as NumPy arrays). It
        returns one value per example, [N], if the metric is their mean, else a float; or None if
        the metric is undefined on these data.
      title: name in tables and plots.
      meaning: one phrase for the report.
      higher_is_better: the direction in which models are compared.
      fraction: whether the value lies in 0 … 1 and is shown in percent.
      weighted: for a metric that is not a mean over examples: `weighted(columns)` returns a
        function from example weights float64 [N] with sum N to the metric of the weighted examples,
        for the bootstrap. None for a metric without a confidence interval.
      biased: whether resampling increases the metric, so that the bootstrap must correct it.
      in_tables: whether the tables in the terminal show it.
    """

    of: Callable[[Columns], Any]
    title: str
    meaning: str
    higher_is_better: bool = True
    fraction: bool = True
    weighted: Callable[[Columns], Callable[[np.ndarray], float]] | None = None
    biased: bool = False
    in_tables: bool = True

    def show(self, value: float | None, digits: int | None = None) -> str:
        """Formats the value: '97.50%' or '0.0812'; '–' for None."""
        if value is None:
            return '–'
        if self.fraction:
            return f'{100 * value:.{2 if digits is None else digits}f}%'
        return f'{value:.{4 if digits is None else digits}f}'

    def cost(self, value: float | None) -> float:
        """Returns the value as a cost, where lower is better; infinite if there is no value."""
        # Treat a missing value as the worst.
        if value is None or np.isnan(value):
            return float('inf')
        if not self.higher_is_better:
            return float(value)
        return 1 - value if self.fraction else -value


class Selection:
    """Order of evaluations by `training.best_by`, for the best checkpoint, patience and plateau."""

    def __init__(self, task: 'Task', best_by: str | None = None):
        """Selects a metric by name; None for the task's first.

        Raises:
          UserError: the task has no such metric.
        """
        metrics = task.metrics
        if best_by is not None and best_by not in metrics:
            raise unknown('training.best_by', best_by, metrics)
        self.name = best_by or next(iter(metrics))
        self.metric = metrics[self.name]
        self._loss = metrics.get('loss')

    def rank(self, scores: Mapping[str, Any]) -> tuple[float, float]:
        """Returns a tuple that is greater for a better evaluation; the loss breaks ties."""
        # A task without a loss has no tie-breaker.
        loss = 0.0 if self._loss is None else self._loss.cost(scores.get('loss'))
        return -self.cost(scores), -loss

    def cost(self, scores: Mapping[str, Any]) -> float:
        """Returns the metric as a cost, where lower is better."""
        return self.metric.cost(scores.get(self.name))


def figures(task: 'Task', columns: Columns) -> dict[str, Any]:
    """Computes every metric of the task.

    Means are exact: correct predictions are counted as integers, and other values are summed with
    `math.fsum`.

    Args:
      task: the task whose metrics are computed.
      columns: columns of n examples, [n, …].

    Returns:
      A dict from the name of each metric to a float, or to None if the metric is undefined or not
      finite. It also has `count` = n, and `not_finite`, which maps the name of each metric that is
      not finite to 'NaN', 'Infinity' or '-Infinity'.
    """
    count = len(columns['id'])
    found: dict[str, Any] = {}
    for name, metric in task.metrics.items():
        # Metrics may be user-defined, so check what they return.
        value = metric.of(columns)
        values = np.asarray(0.0 if value is None else value)
        if values.shape not in ((), (count,)) or values.dtype.kind not in 'biuf':
            raise UserError(
                f'metric {name!r} must return a number, None, or one number per example, '
                f'[{count}], not {described(value)}'
            )
        # Average per-example values; a single number stays as it is.
        if values.ndim and values.dtype == bool:
            value = int(values.sum()) / count
        elif values.ndim:
            values = values.astype(np.float64)
            with np.errstate(invalid='ignore'):  # math.fsum fails on infinities of both signs
                value = (math.fsum(values) if np.isfinite(values).all() else values.sum()) / count
        found[name] = None if value is None else float(value)
    return without_nan({**found, 'count': count})


class _Known(dict):
    """Dict of columns that raises `_UnknownColumn` for a name that does not exist.

    The special exception distinguishes a wrong column name from other `KeyError`s of a metric.
    """

    def __missing__(self, name: str) -> Any:
        raise _UnknownColumn(name)


class _UnknownColumn(KeyError):
    pass


def check_metrics(task: 'Task', columns: Mapping[str, Any]) -> None:
    """Calls each metric of a task with columns of zeros, to find mistakes before training begins.

    A correct metric may fail on zeros, so most errors are ignored. An error is raised only for an
    unknown name of a column, variable, module or function of a module, which is a mistake for any
    values of the columns.

    Args:
      task: a user-defined task.
      columns: shapes and types of the columns that `task.answers` returns, by name.

    Raises:
      UserError: a metric uses a column that does not exist.
      NameError, ImportError, AttributeError: a metric uses another name that does not exist.
    """
    zeros = _Known({k: np.zeros(c.shape, c.dtype) for k, c in columns.items() if k != 'mask'})
    for name, metric in task.metrics.items():
        try:
            with warnings.catch_warnings(action='ignore'), np.errstate(all='ignore'):
                metric.of(zeros)
        except _UnknownColumn as e:
            raise unknown(f'column in metric {name!r}:', e.args[0], zeros) from None
        except UnboundLocalError:  # with zeros, a loop over other classes may have no iteration
            continue
        except (NameError, ImportError):
            raise
        except AttributeError as e:
            if isinstance(e.obj, types.ModuleType):
                raise
        except Exception:
            continue


def metrics_table(
    rows: Mapping[str, Mapping[str, Any]], shown: Mapping[str, Metric], title: str
) -> Table:
    """Returns a table of evaluations for the terminal, one row per evaluation.

    Args:
      rows: metrics by the name of the evaluation. The first metric is shown with its confidence
        interval, if it has one.
      shown: metrics by name; those with `in_tables` become columns.
      title: title of the table.
    """
    table = Table(title=Text(title), title_justify='left')
    table.add_column('split')
    columns = {name: metric for name, metric in shown.items() if metric.in_tables}
    for metric in columns.values():
        table.add_column(metric.title, justify='right')
    table.add_column('examples', justify='right')
    # One row per evaluation, with the confidence interval of the first metric.
    first = next(iter(columns), None)
    for row, values in rows.items():
        cells = []
        for name, metric in columns.items():
            cell = metric.show(values.get(name))
            interval = values.get('intervals', {}).get(name)
            if name == first and interval is not None:
                low, high = (metric.show(v, 1 if metric.fraction else 3) for v in interval)
                cell += f' ({low} … {high})'
            cells.append(cell)
        table.add_row(row, *cells, f'{values["count"]:,}')
    return table


def balanced_accuracy(labels: np.ndarray, correct: np.ndarray) -> float:
    """Returns the mean recall over the classes that have examples: labels int [N], correct [N]."""
    # Classes without examples have no recall.
    support = np.bincount(labels)
    there = support > 0
    return float(np.mean(np.bincount(labels, correct)[there] / support[there]))


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = RELIABILITY_BINS
) -> float:
    """Returns the ECE: |accuracy − confidence| averaged over the bins (Guo et al., eq. 3)."""
    # Sum the signed gaps in each bin, then take absolute values.
    gaps = np.bincount(bins_of(confidence, bins), confidence - correct.astype(np.float64), bins)
    return float(np.abs(gaps).sum() / len(confidence))


def weighted_balanced_accuracy(
    labels: np.ndarray, correct: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Returns `balanced_accuracy` as a function of example weights, float64 [N]."""

    def of(weights: np.ndarray) -> float:
        support = np.bincount(labels, weights)
        there = support > 0
        return float((np.bincount(labels, weights * correct)[there] / support[there]).mean())

    return of


def weighted_calibration_error(
    confidence: np.ndarray, correct: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Returns `expected_calibration_error` as a function of example weights, float64 [N], sum N."""
    # The bins do not depend on the weights.
    where, gap = bins_of(confidence), confidence - correct.astype(np.float64)

    def of(weights: np.ndarray) -> float:
        gaps = np.bincount(where, weights * gap, RELIABILITY_BINS)
        return float(np.abs(gaps).sum()) / len(gap)

    return of


def bins_of(confidence: np.ndarray, bins: int = RELIABILITY_BINS) -> np.ndarray:
    """Returns the bin of each confidence, int [N].

    Bins have equal width and include their right edge; the first one also includes 0.
    """
    edges = np.linspace(0, 1, bins + 1)
    return np.searchsorted(edges[1:-1], confidence)
