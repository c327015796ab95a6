"""A grid of runs: every combination of some values, each trial a workdir of its own.

Trials run one after another, each in a process of its own. A sweep that was stopped or killed goes on with
the same command: finished trials are read, not run again.
"""

import ast
import functools
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.table import Column, Table

from vision.core import apart
from vision.core import config as config_lib
from vision.core import workdir as workdir_lib
from vision.core.cli import with_values
from vision.core.errors import UserError
from vision.core.progress import track
from vision.core.text import json_text
from vision.task import Metric, Selection, read_task
from vision.training.loop import train
from vision.training.records import Results
from vision.training.setup import setup
from vision.training.start import check_start


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder, 'optimizer.lr=0.1,seed=0'.
      values: what differs, by key.
      config: with these values.
    """

    name: str
    values: dict[str, Any]
    config: ConfigDict


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


def make_trials(config: Mapping[str, Any], grid: str) -> list[Trial]:
    """Returns every combination of a grid, the last key's values following one another first.

    Values are set as `--config.KEY=VALUE` sets them: what refers to a key follows it.

    Raises:
      UserError: a grid that cannot be read, or a key or value that the config refuses.
    """
    choices = _read_grid(grid)
    base = config if isinstance(config, ConfigDict) else config_lib.Config(config, type_safe=False)
    for key in choices:
        _check_key(base, key)
    trials = []
    for combination in itertools.product(*choices.values()):
        chosen = {key: value for key, (_, value) in zip(choices, combination, strict=True)}
        texts = {key: text for key, (text, _) in zip(choices, combination, strict=True)}
        try:
            trials.append(
                Trial(_name(chosen), chosen, config_lib.resolve(with_values(base, texts)))
            )
        except UserError as e:
            raise UserError(f'--grid, {_name(chosen)}: {e}') from None
    return trials


def parse_grid(grid: str) -> dict[str, list[Any]]:
    """Reads 'key=value,value;key=value': literals of Python, or else text.

    Commas and semicolons within brackets and quotes belong to the value.

    Raises:
      UserError: it is not of that form.
    """
    return {key: [value for _, value in choices] for key, choices in _read_grid(grid).items()}


def _read_grid(grid: str) -> dict[str, list[tuple[str, Any]]]:
    """The values of each key, as text for the command line and as they are shown."""
    parsed: dict[str, list[tuple[str, Any]]] = {}
    for part in _split(grid, ';'):
        key, equals, text = part.partition('=')
        key = key.strip().removeprefix('config.')
        choices = [_value(v) for v in _split(text, ',')]
        if not equals or not key or not choices:
            raise UserError(f"--grid: {part!r} is not 'key=value,value'")
        if key in parsed or len({repr(value) for _, value in choices}) < len(choices):
            raise UserError(f'--grid: {key} comes twice, or has a value twice')
        parsed[key] = choices
    if not parsed:
        raise UserError("--grid is empty; write 'optimizer.lr=0.1,0.03;seed=0,1,2'")
    return parsed


def over_seeds(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Mean and (sample) standard deviation of a metric over the seeds, for all other values alike."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if 'seed' in row['values'] and not row['error']:
            others = {k: v for k, v in row['values'].items() if k != 'seed'}
            groups.setdefault(_name(others) or 'all', []).append(row)
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
    """What `sweep` returned, as a person reads it."""
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


def _check_key(config: ConfigDict, key: str) -> None:
    """Raises UserError unless the config has a key's section, or the key itself where it has no section."""
    *sections, name = key.split('.')
    at: Any = config
    for section in sections:
        at = at.get(section) if isinstance(at, ConfigDict) else None
        if not isinstance(at, ConfigDict):
            raise UserError(f'--grid: the config has no section {section!r} ({key})')
    if not sections and name not in config:
        raise UserError(f'--grid: the config has no key {key!r}')


def _name(values: dict[str, Any]) -> str:
    """A folder's name: what the values are, and where that is not all of it, a hash."""
    text = ','.join(f'{key}={_text(value)}' for key, value in values.items())
    safe = re.sub(r'[^\w.=,+-]', '_', text)[:120]
    return safe if safe == text else f'{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}'


def _text(value: Any) -> str:
    """A value as a name has it: (3, 3, 3) is 3-3-3."""
    flat = isinstance(value, tuple) and len(value) > 1 and all(isinstance(v, int) for v in value)
    return '-'.join(map(str, value)) if flat else str(value)


def _value(text: str) -> tuple[str, Any]:
    """A value as text for the command line, without quotes around all of it, and as Python reads it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text, text
    return (value if isinstance(value, str) else text), value


def _split(text: str, separator: str) -> list[str]:
    """Cuts a text at a separator that stands outside of brackets and quotes."""
    parts, depth, quote = [''], 0, ''
    for c in text:
        if quote:
            quote = '' if c == quote else quote
        elif c in '\'"':
            quote = c
        else:
            depth += (c in '([{') - (c in ')]}')
        if c == separator and not depth and not quote:
            parts.append('')
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]
