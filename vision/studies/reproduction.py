"""The table of the papers' figures beside ours: rows of runs over seeds, and what was measured of them.

A row's trials are those of a sweep over seeds, so that it goes on where it stopped. What is kept of it
is small, in a folder that is under version control:

    summary.json    the figures by seed
    config.json     the experiment, for any seed
    records.jsonl   each seed's `metrics.jsonl`, seed after seed, with "seed" as the first key of every
                    line (the test figure in it is of one crop, whatever the row's protocol)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.table import Column, Table

from vision.core import apart
from vision.core import config as config_lib
from vision.core import workdir as workdir_lib
from vision.core.errors import UserError
from vision.core.progress import progress_bar
from vision.core.text import json_text
from vision.evaluation.evals import evaluate_runs, named_entries
from vision.studies.sweeps import sweep

_SUMMARY, _CONFIG, _RECORDS = 'summary.json', 'config.json', 'records.jsonl'
_HEADER = (
    'row',
    'paper',
    "paper's error",
    'our error',
    'seeds',
    'hours a seed',
    'machine',
    'commit',
)


class Row(NamedTuple):
    """One figure of a paper.

    Attributes:
      name: of the row and of its folders.
      config: 'configs/NAME.py[:ARGUMENT]'.
      paper: who, when, on what.
      figure: the published error on the test split, as text, top-1 unless it says otherwise.
      evaluation: which of `config.evals` has that figure's protocol; None: the run's own.
      metric: a metric of the task; None for the one that the run is selected by.
    """

    name: str
    config: str
    paper: str
    figure: str
    evaluation: str | None = None
    metric: str | None = None


def reproduce(
    row: Row,
    config: ConfigDict,
    seeds: Sequence[int],
    workdir: Path,
    results: Path,
    command: str,
) -> dict[str, Any]:
    """Trains a row over seeds, or goes on with it, and writes down what came out, seed by seed.

    Args:
      row: whose figure is to be reproduced.
      config: that its `config` names, with the place of the data.
      seeds: each is a trial; those that are finished are read.
      workdir: of all rows; this one's trials are in the folder of its name in it.
      results: the folder of all summaries. What this row's has of other seeds stays.
      command: that does it again, but for its seeds, for the table.

    Returns:
      `seeds`: of each (a string) its `error` (test, in %, as the row measures it), `seconds` of
      training, `machine` and `commit`; `measure`, the row's evaluation and metric; and `command`.

    Raises:
      UserError: a config or data that makes no sense, seeds there of another experiment, or, when
        all others are done, a seed that failed.
      Stopped: a signal came; the same command goes on.
    """
    entries = named_entries(config, [row.evaluation], ConfigDict()) if row.evaluation else {}
    folder = results / row.name
    summary = _read_summary(folder) or {'seeds': {}}
    if summary['seeds']:
        _check_same(folder, summary, row, config)
    summary |= {'command': command}
    failures = []
    for seed in seeds:
        try:
            swept = sweep(config, f'seed={seed}', workdir / row.name)
            (trial,), metric = swept['trials'], row.metric or swept['metric']
            if trial['test'] is None:
                raise UserError('no test figure: the data has no such split, or the run no end')
        except UserError as e:
            said = str(e).removeprefix(f'--grid, seed={seed}: ')  # the grid is ours
            failures.append(f'{row.name}, seed {seed}: {said}')
            continue
        path = Path(trial['workdir'])
        if not _is_kept(path, folder, seed, summary):
            test = trial['test']
            if entries:
                try:
                    test = apart.run_apart(_by_protocol, path, entries)
                except (UserError, apart.Died) as e:
                    failures.append(f'{row.name}, seed {seed}: {e}')
                    continue
            if test.get(metric) is None:
                failures.append(f'{row.name}, seed {seed}: no test figure of {metric!r}')
                continue
            summary['seeds'][str(seed)] = _measured(path, 100 * (1 - test[metric]))
        summary['measure'] = [row.evaluation, metric]
        summary['seeds'] = {
            seed: summary['seeds'][seed] for seed in sorted(summary['seeds'], key=int)
        }
        folder.mkdir(parents=True, exist_ok=True)
        workdir_lib.write_text(folder / _CONFIG, config_lib.to_json(_anywhere(config)))
        workdir_lib.write_text(folder / _SUMMARY, json_text(summary, indent=2) + '\n')
        write_records(folder, seed, workdir_lib.read_records(path))
    if failures:
        raise UserError(failures[0] + (f' (and {len(failures) - 1} more)' if failures[1:] else ''))
    return summary


def write_records(folder: Path, seed: int, records: Sequence[dict[str, Any]]) -> None:
    """Adds or replaces a seed's records; the lines of the other seeds stay as they are.

    The file is written whole or not at all, whenever the process is killed.

    Args:
      folder: of the row.
      seed: whose records they are.
      records: of the seed's run, in their order.
    """
    lines = _lines_by_seed(folder) | {seed: _as_lines(seed, records)}
    text = ''.join(line + '\n' for seed in sorted(lines) for line in lines[seed])
    workdir_lib.write_text(folder / _RECORDS, text)


def read_records(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Returns a seed's records, as its run wrote them; none if the seed was not run.

    Args:
      folder: of the row.
      seed: whose records are asked for.
    """
    records = [json.loads(line) for line in _lines_by_seed(folder).get(seed, [])]
    return [{k: v for k, v in record.items() if k != 'seed'} for record in records]


def table(rows: Sequence[Row], results: Path) -> list[dict[str, Any]]:
    """All rows with what was measured of them: `summary` is None for those that were not run.

    Args:
      rows: in the table's order.
      results: the folder that `reproduce` wrote to.
    """
    measured = []
    for row in rows:
        measured.append({**row._asdict(), 'summary': _read_summary(results / row.name)})
    return measured


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of `table` as text, in the order of the table's columns."""
    protocol = f' ({row["evaluation"]})' if row['evaluation'] else ''
    start = (row['name'], row['paper'], row['figure'] + protocol)
    if row['summary'] is None:
        return (*start, 'not run', '–', '–', '–', '–')
    runs = row['summary']['seeds'].values()
    errors = [run['error'] for run in runs]
    mean = f'{np.mean(errors):.2f}'
    if len(errors) > 1:
        mean += f' ± {np.std(errors, ddof=1):.2f}'
    cost = f'{np.mean([run["seconds"] for run in runs]) / 3600:.2f}'
    where = ('; '.join(dict.fromkeys(run[key] for run in runs)) for key in ('machine', 'commit'))
    unit = f'% {_title(row["metric"])}' if row['metric'] else '%'
    return (*start, f'{mean} {unit}', str(len(errors)), cost, *where)


def _title(metric: str) -> str:
    from vision.task.classification import METRICS

    return METRICS[metric].title if metric in METRICS else metric


def rich_table(measured: Sequence[dict[str, Any]]) -> Table:
    """The columns that a terminal has room for: the file has the papers, the machines and the commits, too."""
    name, _, paper, ours, *_ = _HEADER
    first = (Column(name, no_wrap=True), Column(paper, min_width=11), Column(ours, no_wrap=True))
    made = Table(*first, 'seeds', 'hours')
    for row in measured:
        name, _, *rest = cells(row)[:6]
        made.add_row(name, *rest)
    return made


def write_markdown(measured: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the table, with the command of each row that was run."""
    lines = ['| ' + ' | '.join(_HEADER) + ' |', '|' + '---|' * len(_HEADER)]
    lines += ['| ' + ' | '.join(cells(row)) + ' |' for row in measured]
    commands = [
        f'- {row["name"]}: `{row["summary"]["command"]} --seeds={_seeds(row["summary"])}`'
        for row in measured
        if row['summary']
    ]
    text = "# The papers' figures and ours\n\nTest error of the checkpoint that is best on "
    text += 'held-out training images (of the last, where the config holds none out), '
    text += 'by the protocol in brackets if one is there, mean ± standard deviation over seeds.\n\n'
    workdir_lib.write_text(path, text + '\n'.join([*lines, '', *commands]) + '\n')


def _check_same(folder: Path, summary: dict[str, Any], row: Row, config: Mapping[str, Any]) -> None:
    """Seeds of another experiment, or measured by another protocol, make no mean with these."""
    if not (folder / _CONFIG).is_file():
        raise UserError(f'{folder / _CONFIG} is missing: of which experiment are the seeds there?')
    before = config_lib.from_json((folder / _CONFIG).read_text())
    differences = config_lib.differences(before, _anywhere(config))
    measure = [row.evaluation, row.metric or summary['measure'][1]]
    if summary['measure'] != measure:
        differences.append(f'the measure is {summary["measure"]} there and {measure} here')
    if differences:
        raise UserError(
            f'{folder} has seeds of another experiment: {differences[0]}; name another --results, '
            'or delete that folder'
        )


def _anywhere(config: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment, wherever its data lie, for any seed."""
    same = config_lib.resolve(config).to_dict()
    same['seed'] = None
    same['data'] |= {'path': None, 'data_dir': None}
    if same['data']['source'] == 'idx':
        same['data']['source'] = 'tfds'
    return same


def _is_kept(path: Path, folder: Path, seed: int, summary: dict[str, Any]) -> bool:
    """True if it is the very run that was measured before: a protocol can take hours."""
    if str(seed) not in summary['seeds']:
        return False
    return _lines_by_seed(folder).get(seed) == _as_lines(seed, workdir_lib.read_records(path))


def _lines_by_seed(folder: Path) -> dict[int, list[str]]:
    """The lines of a row's records, by seed, in the order of the file."""
    path = folder / _RECORDS
    lines: dict[int, list[str]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        lines.setdefault(json.loads(line)['seed'], []).append(line)
    return lines


def _as_lines(seed: int, records: Sequence[dict[str, Any]]) -> list[str]:
    return [json_text({'seed': seed, **record}) for record in records]


def _by_protocol(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The test figures by an evaluation; runs apart, so that this process holds no device that trials need."""
    with progress_bar() as progress:
        (evaluation,) = evaluate_runs([path], entries, progress=progress)[1]
    return evaluation.figures


def _measured(path: Path, error: float) -> dict[str, Any]:
    environment = workdir_lib.read_json(path, 'environment.json')
    return {
        'error': error,
        'seconds': _seconds(workdir_lib.read_records(path)),
        'machine': _machine(environment),
        'commit': _commit(environment),
    }


def _machine(environment: dict[str, Any]) -> str:
    devices = environment['devices']
    cores = environment['cpu_count']
    kind = f'{cores} CPU core{"s" * (cores > 1)}' if devices[0] == 'cpu' else devices[0]
    many = f'{len(devices)} × {kind}' if len(devices) > 1 else kind
    return f'{many}, JAX {environment["versions"]["jax"]}'


def _commit(environment: dict[str, Any]) -> str:
    commit, plus, changes = (environment['git'] or 'unknown').partition('+')
    return commit[:10] + plus + changes


def _seconds(records: Sequence[dict[str, Any]]) -> float:
    """Of training, as recorded, at least: each process of a run that was stopped counts from 0."""
    total = last = 0.0
    for seconds in (record['seconds'] for record in records if 'seconds' in record):
        if seconds < last:
            total += last
        last = seconds
    return total + last


def _seeds(summary: dict[str, Any]) -> str:
    """As the flag takes them: how many from 0 on, or which."""
    seeds = list(summary['seeds'])
    if seeds == [str(seed) for seed in range(len(seeds))]:
        return str(len(seeds))
    return ','.join(seeds) if len(seeds) > 1 else f'{seeds[0]},'


def _read_summary(folder: Path) -> dict[str, Any] | None:
    path = folder / _SUMMARY
    return json.loads(path.read_text()) if path.is_file() else None
