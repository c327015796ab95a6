"""Sweep over a grid: one run, with its own workdir, for every combination of values.

Trials run one after another, each in its own process. A sweep that was stopped or killed is resumed
by the same command: finished trials are read, not run again.
"""

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.table import Column, Table

from vision.core import apart
from vision.core import config as config_lib
from vision.core import workdir as workdir_lib
from vision.core.errors import UserError
from vision.core.progress import track
from vision.core.text import json_text
from vision.studies.grid import Trial, make_trials, name_of
from vision.task.base import read_task
from vision.task.metrics import Metric, Selection
from vision.training.loop import train
from vision.training.records import Results
from vision.training.setup import setup
from vision.training.start import check_start


def sweep(config: ConfigDict, grid: str, workdir: str | os.PathLike) -> dict[str, Any]:
    """Checks all combinations of a grid, then trains them one after another.

    If a trial fails (by an exception, because memory ran out, or by a signal to its process), its
    row records the reason and the sweep continues.

    Args:
      config: a config as a file in `configs/` returns it.
      grid: the grid, such as 'optimizer.lr=0.1,0.03;seed=0,1,2'.
      workdir: the sweep's folder, with a workdir for each trial. The result is also written to
        WORKDIR/sweep.json, and the traceback of a failed trial to its `error.txt`.

    Returns:
      `trials`, the best first: `trial`, `values`, `workdir`, `error` (None, or the reason of the
      failure) and the metrics of the best checkpoint by split. `metric`: the selection metric. If
      the grid has seeds, `seeds`: for each combination of the other values `count`, and the mean
      and standard deviation of the selection metric by split.

    Raises:
      UserError: the grid or a config is invalid, or every trial failed.
      Stopped: SIGTERM or SIGINT was received, after the trial's checkpoint was written.
    """
    # Check everything before the first trial is trained.
    trials = make_trials(config, grid)
    folder = workdir_lib.check_place(workdir)
    metric = _check(trials, folder)
    workdir_lib.create(folder)
    rows: list[dict[str, Any]] = []
    ranks: dict[str, tuple[float, ...]] = {}  # sort keys of the trials; greater is better
    with workdir_lib.Lock(folder):
        for i, trial in enumerate(trials, 1):
            print(f'trial {i}/{len(trials)}: {trial.name}', file=sys.stderr)
            row: dict[str, Any] = {
                'trial': trial.name, 'values': trial.values, 'workdir': str(folder / trial.name),
                'error': None, 'validation': None, 'test': None,
            }  # fmt: skip
            # Train in a separate process, or read a finished trial.
            error_file = folder / trial.name / 'error.txt'
            error_file.unlink(missing_ok=True)
            try:
                trained = apart.run_apart(_train, trial.config.to_dict(), folder / trial.name)
                figures, metric, ranks[trial.name] = trained
                row |= figures
            except (UserError, apart.Died) as e:
                row['error'] = str(e)
                if details := getattr(e, 'details', ''):
                    error_file.parent.mkdir(exist_ok=True)
                    workdir_lib.write_text(error_file, details)
                print(f'{trial.name} failed: {e}', file=sys.stderr)
            # Write the results so far: the sweep may be stopped at any time.
            rows.append(row)
            result = {
                'grid': grid,
                'metric': metric,
                'trials': sorted(rows, key=functools.partial(_order, ranks)),
                'seeds': over_seeds(rows, metric),
            }
            workdir_lib.write_text(folder / 'sweep.json', json_text(result, indent=2) + '\n')
    if all(row['error'] for row in rows):
        raise UserError(f'all {len(rows)} trials failed; the first with: {rows[0]["error"]}')
    return result


def _check(trials: list[Trial], folder: Path) -> str:
    """Checks all trials as training checks a run before it creates the workdir.

    Returns:
      The selection metric of the trials.

    Raises:
      UserError: training would refuse a trial, or the trials have different selection metrics.
    """
    starts = [(trial.config.to_dict(), folder / trial.name) for trial in trials]
    try:
        # Check in another process, unless this one holds the devices already, because the trials
        # cannot use a device that this process holds.
        here = apart.holds_devices()
        found = _selections(starts) if here else apart.run_apart(_selections, starts)
    except apart.Died:  # the trial that ended the process will fail again and report the reason
        return ''
    # Report the first mistake; trials with different metrics cannot be ranked.
    selections = {}
    for trial, (metric, mistake) in zip(trials, found, strict=True):
        if mistake is not None:
            raise UserError(f'--grid, {trial.name}: {mistake}')
        if metric is not None:
            selections[metric] = trial.name
    if len(selections) > 1:
        raise UserError(
            f'--grid: the trials are selected by different metrics, {" and ".join(selections)}, '
            'and cannot be ranked; set one training.best_by'
        )
    return next(iter(selections), '')


def _selections(
    starts: list[tuple[dict[str, Any], Path]],
) -> list[tuple[str | None, str | None]]:
    """Sets up the config of each trial; returns its (selection metric, user's mistake)."""
    found: list[tuple[str | None, str | None]] = []
    for values, workdir in track(starts, len(starts), 'checking trials'):
        try:
            run = setup(config_lib.resolve(values))
            check_start(run, workdir)
            found.append((run.selection.name, None))
        except UserError as e:
            found.append((None, str(e)))
        except Exception:  # for example an error in a user's model: the trial's row will report it
            found.append((None, None))
    return found


def _train(values: dict[str, Any], workdir: Path) -> tuple[Results, str, tuple[float, ...]]:
    """Trains one trial; returns its metrics, its selection metric and its rank."""
    config = config_lib.resolve(values)
    figures = train(config, workdir)
    selection = Selection(read_task(workdir), config.training.best_by)
    scores = figures.get('validation')
    return figures, selection.name, () if scores is None else selection.rank(scores)


def over_seeds(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Returns mean and sample standard deviation of a metric over trials that differ in seed."""
    # Group the trials by their other values.
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        # Failed trials and grids without seeds have no statistics.
        if 'seed' in row['values'] and not row['error']:
            others = {k: v for k, v in row['values'].items() if k != 'seed'}
            groups.setdefault(name_of(others) or 'all', []).append(row)
    summaries = []
    for name, members in groups.items():
        summary: dict[str, Any] = {'values': name, 'count': len(members)}
        for split in ('validation', 'test'):
            scores = [row[split][metric] for row in members if row[split]]
            scores = [score for score in scores if score is not None]
            summary[split] = None
            if scores:
                std = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
                summary[split] = {'mean': float(np.mean(scores)), 'std': std}
        summaries.append(summary)
    return summaries


def sweep_tables(result: dict[str, Any]) -> list[Table]:
    """Returns the result of `sweep` as tables: the trials, and the statistics over seeds."""
    failed = [f'{row["trial"]} failed: {row["error"]}' for row in result['trials'] if row['error']]
    table = Table(
        Column('trial', no_wrap=True),
        title='best checkpoint of each trial',
        caption='\n'.join(failed) or None,
    )
    # A column for the selection metric and the loss of each split.
    trained = [row for row in result['trials'] if not row['error']]
    metrics = read_task(Path(trained[0]['workdir'])).metrics
    chosen = metrics[result['metric']]
    shown = {result['metric']: chosen} | {k: m for k, m in metrics.items() if k == 'loss'}
    for split in ('val.', 'test'):
        for metric in shown.values():
            table.add_column(f'{split} {metric.title}', justify='right')
    for row in result['trials']:
        if row['error']:
            table.add_row(row['trial'], 'failed')
            continue
        cells = [
            metric.show(row[split].get(name)) if row[split] else '–'
            for split in ('validation', 'test')
            for name, metric in shown.items()
        ]
        table.add_row(row['trial'], *cells)
    # A second table if the grid has seeds.
    if not result['seeds']:
        return [table]
    seeds = Table(
        Column('over seeds', no_wrap=True),
        'runs',
        f'validation {chosen.title}',
        f'test {chosen.title}',
    )
    for summary in result['seeds']:
        cells = [_mean(summary[split], chosen) for split in ('validation', 'test')]
        seeds.add_row(summary['values'], str(summary['count']), *cells)
    return [table, seeds]


def _mean(figures: dict[str, Any] | None, metric: Metric) -> str:
    if figures is None:
        return '–'
    spread = '' if figures['std'] is None else f' ± {metric.show(figures["std"])}'
    return metric.show(figures['mean']) + spread


def _order(ranks: Mapping[str, tuple[float, ...]], row: dict[str, Any]) -> tuple:
    """Returns a sort key: the best trial first, trials without a validation metric last."""
    rank = ranks.get(row['trial'], ())
    return (not rank, *(-value for value in rank))
