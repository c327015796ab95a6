"""A grid of runs: every combination of some values, each trial a workdir of its own.

Trials run one after another, each in a process of its own. A sweep that was stopped or killed goes on with
the same command: finished trials are read, not run again.
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
    """Trains every combination of a grid, after all of them were checked.

    A trial is a process of its own. Whatever ends it (an exception, the kernel for want of memory, a
    signal to that process), its row says why, and the others run.

    Args:
      config: as a file in `configs/` returns it.
      grid: 'optimizer.lr=0.1,0.03;seed=0,1,2'.
      workdir: of the sweep; a trial's is a folder in it. `sweep.json` there is what is returned; an
        exception's traceback is `error.txt` in the trial's.

    Returns:
      `trials`, the best first: `trial`, `values`, `workdir`, `error` (None, or why it failed) and
      the best checkpoint's metrics by split. With seeds in the grid also `seeds`: for each
      combination of the other values, `count`, and mean and standard deviation of each split's `metric`,
      the one that the runs are selected by.

    Raises:
      UserError: a grid or config that makes no sense, or every trial failed.
      Stopped: SIGTERM or SIGINT came, and the trial's checkpoint was written.
    """
    trials = make_trials(config, grid)
    folder = workdir_lib.check_place(workdir)
    metric = _check(trials, folder)
    workdir_lib.create(folder)
    rows: list[dict[str, Any]] = []
    ranks: dict[str, tuple[float, ...]] = {}  # by trial, the greatest first
    with workdir_lib.Lock(folder):
        for i, trial in enumerate(trials, 1):
            print(f'trial {i}/{len(trials)}: {trial.name}', file=sys.stderr)
            row: dict[str, Any] = {
                'trial': trial.name, 'values': trial.values, 'workdir': str(folder / trial.name),
                'error': None, 'validation': None, 'test': None,
            }  # fmt: skip
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
            rows.append(row)
            result = {
                'grid': grid,
                'metric': metric,
                'trials': sorted(rows, key=functools.partial(_order, ranks)),
                'seeds': over_seeds(rows, metric),
            }
            workdir_lib.write_text(folder / 'sweep.json', json_text(result, indent=2) + '\n')
    if all(row['error'] for row in rows):
        raise UserError(f'all {len(rows)} trials failed; the first: {rows[0]["error"]}')
    return result


def _check(trials: list[Trial], folder: Path) -> str:
    """Checks all trials, as far as a run is checked before its workdir is made.

    Returns:
      The metric that they are selected by.

    Raises:
      UserError: a trial that would be refused, or trials that are selected by several metrics.
    """
    starts = [(trial.config.to_dict(), folder / trial.name) for trial in trials]
    try:
        # A process that has no device takes none, which trials need for themselves.
        here = apart.holds_devices()
        found = _selections(starts) if here else apart.run_apart(_selections, starts)
    except apart.Died:  # so will the trial that ended it, which then says why
        return ''
    selections = {}
    for trial, (metric, mistake) in zip(trials, found, strict=True):
        if mistake is not None:
            raise UserError(f'--grid, {trial.name}: {mistake}')
        if metric is not None:
            selections[metric] = trial.name
    if len(selections) > 1:
        raise UserError(
            f'--grid: trials are selected by {" and ".join(selections)}, and cannot be ranked together; '
            'set one training.best_by'
        )
    return next(iter(selections), '')


def _selections(
    starts: list[tuple[dict[str, Any], Path]],
) -> list[tuple[str | None, str | None]]:
    """Sets up each config, for its workdir: the metric that it is selected by, or the user's mistake in it."""
    found: list[tuple[str | None, str | None]] = []
    for values, workdir in track(starts, len(starts), 'checking trials'):
        try:
            run = setup(config_lib.resolve(values))
            check_start(run, workdir)
            found.append((run.selection.name, None))
        except UserError as e:
            found.append((None, str(e)))
        except Exception:  # a fault of a model's own code, say: the trial's row will tell
            found.append((None, None))
    return found


def _train(values: dict[str, Any], workdir: Path) -> tuple[Results, str, tuple[float, ...]]:
    """Trains one trial; returns its figures, the metric that it is selected by, and its rank."""
    config = config_lib.resolve(values)
    figures = train(config, workdir)
    selection = Selection(read_task(workdir), config.training.best_by)
    scores = figures.get('validation')
    return figures, selection.name, () if scores is None else selection.rank(scores)


def over_seeds(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Mean and (sample) standard deviation of a metric over the seeds, for all other values alike."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
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
    """The result of `sweep` as text."""
    failed = [f'{row["trial"]} failed: {row["error"]}' for row in result['trials'] if row['error']]
    table = Table(
        Column('trial', no_wrap=True),
        title='the best checkpoint of each trial',
        caption='\n'.join(failed) or None,
    )
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
    """Sorts the best trial first, those without a validation figure last."""
    rank = ranks.get(row['trial'], ())
    return (not rank, *(-value for value in rank))
