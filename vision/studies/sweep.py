"""A grid of runs: every combination of some values, each trial a workdir of its own.

Trials run one after another in one process. A sweep that was stopped or killed goes on with the same
command: finished trials are read, not run again.
"""

import ast
import copy
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

from vision.core import config as config_lib
from vision.core import strict_json
from vision.core import workdir as workdir_lib
from vision.core.errors import UserError
from vision.task import Metric, Selection, read_task
from vision.training.loop import train
from vision.training.setup import setup


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

    Args:
      config: as a file in `configs/` returns it.
      grid: 'optimizer.lr=0.1,0.03;seed=0,1,2'.
      workdir: of the sweep; a trial's is a folder in it. `sweep.json` there is what is returned.

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
    selections = {}
    for trial in trials:
        try:
            selection = setup(trial.config).selection
            selections[selection.name] = trial.name
        except UserError as e:
            raise UserError(f'--grid, {trial.name}: {e}') from None
    if len(selections) > 1:
        raise UserError(
            f'--grid: trials are selected by {" and ".join(selections)}, and cannot be ranked together; '
            'set one training.best_by'
        )
    folder = workdir_lib.create(workdir)
    rows: list[dict[str, Any]] = []
    with workdir_lib.Lock(folder):
        for i, trial in enumerate(trials, 1):
            print(f'trial {i}/{len(trials)}: {trial.name}', file=sys.stderr)
            row: dict[str, Any] = {
                'trial': trial.name, 'values': trial.values, 'workdir': str(folder / trial.name),
                'error': None, 'validation': None, 'test': None,
            }  # fmt: skip
            try:
                row |= train(trial.config, folder / trial.name)
            except UserError as e:
                row['error'] = str(e)
                print(f'{trial.name} failed: {e}', file=sys.stderr)
            rows.append(row)
            result = {
                'grid': grid,
                'metric': selection.name,
                'trials': sorted(rows, key=functools.partial(_order, selection)),
                'seeds': over_seeds(rows, selection.name),
            }
            workdir_lib.write_text(
                folder / 'sweep.json', strict_json.dumps(result, indent=2) + '\n'
            )
    if all(row['error'] for row in rows):
        raise UserError(f'all {len(rows)} trials failed; the first: {rows[0]["error"]}')
    return result


def make_trials(config: Mapping[str, Any], grid: str) -> list[Trial]:
    """Returns every combination of a grid, the last key's values following one another first.

    Raises:
      UserError: a grid that cannot be read, or a key or value that the config refuses.
    """
    values, base = parse_grid(grid), config_lib.plain(config)
    trials = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        own = copy.deepcopy(base)
        for key, value in chosen.items():
            _set(own, key, value)
        trials.append(Trial(_name(chosen), chosen, config_lib.resolve(own)))
    return trials


def parse_grid(grid: str) -> dict[str, list[Any]]:
    """Reads 'key=value,value;key=value': literals of Python, or else text.

    Commas and semicolons within brackets and quotes belong to the value.

    Raises:
      UserError: it is not of that form.
    """
    parsed: dict[str, list[Any]] = {}
    for part in _split(grid, ';'):
        key, equals, text = part.partition('=')
        key, values = key.strip().removeprefix('config.'), [_value(v) for v in _split(text, ',')]
        if not equals or not key or not values:
            raise UserError(f"--grid: {part!r} is not 'key=value,value'")
        if key in parsed or len({repr(v) for v in values}) < len(values):
            raise UserError(f'--grid: {key} comes twice, or has a value twice')
        parsed[key] = values
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
    table = Table(
        Column('trial', overflow='fold'),
        title='the best checkpoint of each trial',
        title_justify='left',
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
            table.add_row(row['trial'], f'failed: {row["error"]}')
            continue
        cells = [
            metric.show(row[split].get(name)) if row[split] else '–'
            for split in ('validation', 'test')
            for name, metric in shown.items()
        ]
        table.add_row(row['trial'], *cells)
    if not result['seeds']:
        return [table]
    seeds = Table('over seeds', 'runs', f'validation {chosen.title}', f'test {chosen.title}')
    for summary in result['seeds']:
        cells = [_mean(summary[split], chosen) for split in ('validation', 'test')]
        seeds.add_row(summary['values'], str(summary['count']), *cells)
    return [table, seeds]


def _mean(figures: dict[str, Any] | None, metric: Metric) -> str:
    if figures is None:
        return '–'
    spread = '' if figures['std'] is None else f' ± {metric.show(figures["std"])}'
    return metric.show(figures['mean']) + spread


def _order(selection: Selection, row: dict[str, Any]) -> tuple:
    """Sorts the best trial first, those without a validation figure last."""
    scores = row['validation']
    return (1,) if scores is None else (0, *(-value for value in selection.rank(scores)))


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split('.')
    at = config
    for section in sections:
        at = at.get(section, {})
        if not isinstance(at, dict) or not at:
            raise UserError(f'--grid: the config has no section {section!r} ({key})')
    if not sections and name not in config:
        raise UserError(f'--grid: the config has no key {key!r}')
    if isinstance(at.get(name), float) and isinstance(value, int):
        value = float(value)
    at[name] = value


def _name(values: dict[str, Any]) -> str:
    """A folder's name: what the values are, and where that is not all of it, a hash."""
    text = ','.join(f'{key}={_text(value)}' for key, value in values.items())
    safe = re.sub(r'[^\w.=,+-]', '_', text)[:120]
    return safe if safe == text else f'{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}'


def _text(value: Any) -> str:
    """A value as a name has it: (3, 3, 3) is 3-3-3."""
    flat = isinstance(value, tuple) and len(value) > 1 and all(isinstance(v, int) for v in value)
    return '-'.join(map(str, value)) if flat else str(value)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


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
