"""Reproduction of published results: runs over several seeds, and a table of the papers' errors.

The runs of a row are the trials of a sweep over seeds, so that an interrupted row can be resumed.
The results of a row are kept in a small folder under version control:

    summary.json    the test error and cost of each seed
    config.json     the experiment, for any seed
    records.jsonl   the `metrics.jsonl` of all seeds, in order of the seeds, with "seed" as the
                    first key of each line. The test metrics in it are those of the run's own
                    evaluation, even if the row has another test protocol.
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
    'hours per seed',
    'machine',
    'commit',
)


class Row(NamedTuple):
    """A published result and the experiment that reproduces it.

    Attributes:
      name: the name of the row and of its folders.
      config: 'configs/NAME.py[:ARGUMENT]'.
      paper: first author, year and data set.
      figure: the published test error as text; top-1 unless the text names another metric.
      evaluation: the entry of `config.evals` that follows the paper's test protocol; None for the
        run's own evaluation.
      metric: the metric of the task to report; None for the run's selection metric.
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
    """Trains a row's experiment with several seeds, and writes the results after each seed.

    Args:
      row: the row to reproduce.
      config: the config that `row.config` names, with the location of the data.
      seeds: the seeds to train. Finished runs are read, not repeated.
      workdir: the folder of the runs of all rows; the runs of this row are in WORKDIR/ROW.
      results: the folder of all summaries. Existing results of other seeds are kept.
      command: the command that repeats the row, without its seeds, for the table.

    Returns:
      `seeds`: for each seed (a string) the test `error` in %, `seconds` of training, `machine` and
      `commit`. `measure`: the row's evaluation and metric. `command`.

    Raises:
      UserError: the config or the data is invalid, the folder has results of another experiment, or
        a seed failed (raised after all other seeds are done).
      Stopped: a signal stopped a run. The same command resumes it.
    """
    # Check the protocol and existing results before any training.
    entries = named_entries(config, [row.evaluation], ConfigDict()) if row.evaluation else {}
    folder = results / row.name
    summary = _read_summary(folder) or {'seeds': {}}
    if summary['seeds']:
        _check_same(folder, summary, row, config)
    summary |= {'command': command}
    # A failed seed does not stop the others.
    failures = []
    for seed in seeds:
        # Train, or read the finished run.
        try:
            swept = sweep(config, f'seed={seed}', workdir / row.name)
            (trial,), metric = swept['trials'], row.metric or swept['metric']
            if trial['test'] is None:
                raise UserError(
                    'there is no test result: the data has no test split, or the run did not finish'
                )
        except UserError as e:
            said = str(e).removeprefix(f'--grid, seed={seed}: ')  # the user gave no --grid
            failures.append(f'{row.name}, seed {seed}: {said}')
            continue
        # Evaluate with the row's protocol, unless the summary already has this very run.
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
                failures.append(f'{row.name}, seed {seed}: there is no test result for {metric!r}')
                continue
            summary['seeds'][str(seed)] = _measured(path, 100 * (1 - test[metric]))
        # Write everything after each seed: the next one may take hours.
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
    """Adds or replaces a seed's records in `records.jsonl`, atomically; other seeds stay unchanged.

    Args:
      folder: the row's folder.
      seed: the seed of the records.
      records: the records of the seed's run, in order.
    """
    lines = _lines_by_seed(folder) | {seed: _as_lines(seed, records)}
    text = ''.join(line + '\n' for seed in sorted(lines) for line in lines[seed])
    workdir_lib.write_text(folder / _RECORDS, text)


def read_records(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Returns a seed's records from a row's folder, as its run wrote them; [] if there are none."""
    records = [json.loads(line) for line in _lines_by_seed(folder).get(seed, [])]
    return [{k: v for k, v in record.items() if k != 'seed'} for record in records]


def table(rows: Sequence[Row], results: Path) -> list[dict[str, Any]]:
    """Returns all rows with their results; `summary` is None for rows that were not run.

    Args:
      rows: the rows in the order of the table.
      results: the folder that `reproduce` wrote to.
    """
    measured = []
    for row in rows:
        measured.append({**row._asdict(), 'summary': _read_summary(results / row.name)})
    return measured


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the cells of a row of `table` as text, in the order of the columns."""
    protocol = f' ({row["evaluation"]})' if row['evaluation'] else ''
    start = (row['name'], row['paper'], row['figure'] + protocol)
    if row['summary'] is None:
        return (*start, 'not run', '–', '–', '–', '–')
    # Mean and sample standard deviation of the error, and mean cost, over the seeds.
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
    """Returns the table for a terminal, without the papers, the machines and the commits."""
    name, _, paper, ours, *_ = _HEADER
    first = (Column(name, no_wrap=True), Column(paper, min_width=11), Column(ours, no_wrap=True))
    made = Table(*first, 'seeds', 'hours')
    for row in measured:
        name, _, *rest = cells(row)[:6]
        made.add_row(name, *rest)
    return made


def write_markdown(measured: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the table as Markdown, followed by the command of each row that was run."""
    # The table, then a list of commands, then the text above both.
    lines = ['| ' + ' | '.join(_HEADER) + ' |', '|' + '---|' * len(_HEADER)]
    lines += ['| ' + ' | '.join(cells(row)) + ' |' for row in measured]
    commands = [
        f'- {row["name"]}: `{row["summary"]["command"]} --seeds={_seeds(row["summary"])}`'
        for row in measured
        if row['summary']
    ]
    text = (
        "# The papers' results and ours\n\n"
        'Test errors are means ± standard deviations over seeds. The checkpoint is the best one on\n'
        'held-out training images, or the last one if the config holds none out. Brackets name\n'
        'the test protocol if it is not the usual one.\n\n'
    )
    workdir_lib.write_text(path, text + '\n'.join([*lines, '', *commands]) + '\n')


def _check_same(folder: Path, summary: dict[str, Any], row: Row, config: Mapping[str, Any]) -> None:
    """Raises UserError if the folder has results of another experiment or test protocol."""
    if not (folder / _CONFIG).is_file():
        raise UserError(
            f'{folder / _CONFIG} is missing, so the experiment of the results there is unknown; '
            'name another --results, or delete that folder'
        )
    # Compare the config and the way in which the error is measured.
    before = config_lib.from_json((folder / _CONFIG).read_text())
    differences = config_lib.differences(before, _anywhere(config))
    measure = [row.evaluation, row.metric or summary['measure'][1]]
    if summary['measure'] != measure:
        differences.append(f'the measure is {summary["measure"]} there and {measure} here')
    if differences:
        raise UserError(
            f'{folder} has results of another experiment: {differences[0]}; '
            'name another --results, or delete that folder'
        )


def _anywhere(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config without its seed and the location of its data."""
    same = config_lib.resolve(config).to_dict()
    # The same MNIST may come from IDX files or from TFDS.
    same['seed'] = None
    same['data'] |= {'path': None, 'data_dir': None}
    if same['data']['source'] == 'idx':
        same['data']['source'] = 'tfds'
    return same


def _is_kept(path: Path, folder: Path, seed: int, summary: dict[str, Any]) -> bool:
    """Returns True if the summary already has this run, which then need not be evaluated again."""
    if str(seed) not in summary['seeds']:
        return False
    return _lines_by_seed(folder).get(seed) == _as_lines(seed, workdir_lib.read_records(path))


def _lines_by_seed(folder: Path) -> dict[int, list[str]]:
    """Returns the lines of a row's `records.jsonl` by seed, in the order of the file."""
    path = folder / _RECORDS
    lines: dict[int, list[str]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        lines.setdefault(json.loads(line)['seed'], []).append(line)
    return lines


def _as_lines(seed: int, records: Sequence[dict[str, Any]]) -> list[str]:
    return [json_text({'seed': seed, **record}) for record in records]


def _by_protocol(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Evaluates a run with a test protocol and returns its metrics.

    This runs in a separate process, so that the main process holds no device that trials need.
    """
    with progress_bar() as progress:
        (evaluation,) = evaluate_runs([path], entries, progress=progress)[1]
    return evaluation.figures


def _measured(path: Path, error: float) -> dict[str, Any]:
    """Returns the entry of a seed in the summary."""
    environment = workdir_lib.read_json(path, 'environment.json')
    return {
        'error': error,
        'seconds': _seconds(workdir_lib.read_records(path)),
        'machine': _machine(environment),
        'commit': _commit(environment),
    }


def _machine(environment: dict[str, Any]) -> str:
    # For example '2 × NVIDIA H100, JAX 0.11.2' or '1 CPU core, JAX 0.10.2'.
    devices = environment['devices']
    cores = environment['cpu_count']
    kind = f'{cores} CPU core{"s" * (cores > 1)}' if devices[0] == 'cpu' else devices[0]
    many = f'{len(devices)} × {kind}' if len(devices) > 1 else kind
    return f'{many}, JAX {environment["versions"]["jax"]}'


def _commit(environment: dict[str, Any]) -> str:
    # Keep the mark of uncommitted changes: 'a50ed67ab5+changes'.
    commit, plus, changes = (environment['git'] or 'unknown').partition('+')
    return commit[:10] + plus + changes


def _seconds(records: Sequence[dict[str, Any]]) -> float:
    """Returns the recorded seconds of training.

    Each process of a resumed run counts from 0, so a value smaller than the one before it is the
    first of a new process. The time of a process after its last record is not known.
    """
    total = last = 0.0
    for seconds in (record['seconds'] for record in records if 'seconds' in record):
        if seconds < last:
            total += last
        last = seconds
    return total + last


def _seeds(summary: dict[str, Any]) -> str:
    """Returns the seeds as `--seeds` takes them: their number if they are 0, 1, …, or a list."""
    seeds = list(summary['seeds'])
    if seeds == [str(seed) for seed in range(len(seeds))]:
        return str(len(seeds))
    return ','.join(seeds) if len(seeds) > 1 else f'{seeds[0]},'


def _read_summary(folder: Path) -> dict[str, Any] | None:
    path = folder / _SUMMARY
    return json.loads(path.read_text()) if path.is_file() else None
