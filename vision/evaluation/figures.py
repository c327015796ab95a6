"""Figures of a split: from the columns of its examples to numbers, intervals and tables."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from vision.task import metrics
from vision.task.base import Columns, Metric, Task


def figures(task: Task, columns: Columns) -> dict[str, Any]:
    """Computes every metric of the task.

    Means are exact: right answers are counted as integers, all else is summed without rounding errors.

    Args:
      task: whose metrics.
      columns: of n examples, [n, …] each.

    Returns:
      A float by the metric's name, None where it is no number, and `count` = n.
    """
    count = len(columns['id'])
    found: dict[str, Any] = {}
    for name, metric in task.metrics.items():
        value = metric.of(columns)
        if value is not None and np.ndim(value):
            values = np.asarray(value)
            if values.dtype == bool:
                value = int(values.sum()) / count
            else:
                value = math.fsum(values.astype(np.float64)) / count
        found[name] = None if value is None or not np.isfinite(value) else float(value)
    return {**found, 'count': count}


def intervals(
    task: Task, columns: Columns, resamples: int = metrics.RESAMPLES
) -> dict[str, list[float]]:
    """Confidence intervals (low, high) of 95 % for the metrics that have one, by the bootstrap."""
    statistics: dict[str, Any] = {}
    for name, metric in task.metrics.items():
        value = metric.of(columns)
        if metric.weighted is not None:
            statistics[name] = metric.weighted(columns)
        elif value is not None and np.ndim(value):
            statistics[name] = np.asarray(value)
    biased = [name for name in statistics if task.metrics[name].biased]
    count = len(columns['id'])
    drawn = metrics.intervals(count, statistics, biased, resamples=resamples)
    return {name: list(interval) for name, interval in drawn.items() if np.isfinite(interval).all()}


def metrics_table(
    rows: Mapping[str, Mapping[str, Any]], shown: Mapping[str, Metric], title: str
) -> Table:
    """A table of evaluations for the terminal, one row each.

    Args:
      rows: figures by what was evaluated; an interval of the first metric is shown where there is one.
      shown: the metrics by name; those with `in_tables` are columns.
      title: above the table.
    """
    table = Table(title=title, title_justify='left')
    table.add_column('split')
    columns = {name: metric for name, metric in shown.items() if metric.in_tables}
    for metric in columns.values():
        table.add_column(metric.title, justify='right')
    table.add_column('examples', justify='right')
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
