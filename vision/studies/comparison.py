"""Comparison of runs: training curves, metrics, and tests for significant differences."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Column, Table

from vision.core import workdir as workdir_lib
from vision.core.errors import UserError
from vision.core.fonts import legible
from vision.core.progress import track
from vision.core.text import AnyPath, as_list
from vision.evaluation.evals import Predicted, predict_run
from vision.evaluation.figures import mcnemar
from vision.evaluation.run import load_run, open_checkpoints
from vision.task.base import read_task
from vision.task.metrics import Metric, Selection
from vision.training.records import results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEGEND = 125  # characters of one line of the legend


def compare(workdirs: Iterable[AnyPath] | AnyPath, split: str = 'test') -> dict[str, Any]:
    """Compares the best checkpoints of runs.

    Args:
      workdirs: the workdirs of two or more runs, which may still be training.
      split: the split whose examples McNemar's test compares.

    Returns:
      `runs`: for each run `run` (its name), `workdir`, `model`, `step` (the last recorded),
      `checkpoint` (the step of the best), the recorded metrics of that checkpoint by split, and the
      median `images_per_second`. `pairs`: for each pair of runs `first`, `second`, `only_first` and
      `only_second` (the number of examples that only this run classifies correctly), `p_value`, and
      `error` (None, or the reason why the pair cannot be compared).

    Raises:
      UserError: there are fewer than two runs, a run is named twice, or a workdir does not exist.
    """
    paths = [Path(w).expanduser().absolute() for w in as_list(workdirs)]
    if len(paths) < 2:
        raise UserError('name at least two runs')
    if len(set(paths)) < len(paths):
        raise UserError('a run is named twice')
    # Read the recorded figures, then predict the split once with each run.
    names = short_names(paths)
    runs = [_figures(path, name) for path, name in zip(paths, names, strict=True)]
    answers = [_try_predict(path, split) for path in track(paths, len(paths), 'evaluating runs')]
    pairs = []
    for (one, first), (other, second) in itertools.combinations(
        zip(names, answers, strict=True), 2
    ):
        pairs.append({'first': one, 'second': other, 'error': None} | _pair(first, second))
    return {'split': split, 'runs': runs, 'pairs': pairs}


def draw_curves(workdirs: Iterable[AnyPath] | AnyPath) -> 'Figure':
    """Draws the loss and the selection metric of one run or several over epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    paths = [Path(w).expanduser().absolute() for w in as_list(workdirs)]
    names = short_names(paths)
    figure = Figure(figsize=(11, 4.2), dpi=120, layout='constrained')
    axes = figure.subplots(1, 2)
    chosen = _selection(paths[0])
    # One colour for each run; dots for training, lines for validation.
    for i, (workdir, name) in enumerate(zip(paths, names, strict=True)):
        records, per_epoch = workdir_lib.read_records(workdir), _steps_per_epoch(workdir)
        shown = legible(name).replace('$', r'\$')  # matplotlib would read $…$ as a formula
        for metric, panel in zip(('loss', chosen.name), axes, strict=True):
            for split, style in (('train', ':'), ('validation', '.-')):
                key = f'{split}/{metric}'
                points = [
                    (r['step'] / per_epoch, r[key]) for r in records if r.get(key) is not None
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    label = shown if split == 'validation' else None
                    panel.plot(x, y, style, color=f'C{i % 10}', label=label, linewidth=1.3)
    # A logarithmic axis for the loss, with labels at 1, 2 and 5.
    axes[0].set_ylabel('loss')
    axes[0].set_yscale('log')
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter('{x:g}')
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[1].set_ylabel(chosen.metric.title)
    for panel in axes:
        panel.set_xlabel('epoch')
        panel.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
        panel.grid(alpha=0.3)
    # The legend gets as many columns as fit; an entry's line and margins take 7 characters.
    handles, labels = axes[1].get_legend_handles_labels()
    columns = max(1, _LEGEND // (max(map(len, names)) + 7))
    figure.legend(handles, labels, loc='outside lower center', ncols=min(len(paths), columns))
    figure.suptitle('validation (solid) and training (dotted)', fontsize=10)
    return figure


def compare_tables(result: dict[str, Any]) -> list[Table]:
    """Returns the result of `compare` as two tables: the runs, and the pairs of runs."""
    # The runs: one column for each metric and split.
    runs = Table(Column('run', no_wrap=True), 'model', 'step', title='best checkpoint of each run')
    shown = _shown([Path(row['workdir']) for row in result['runs']])
    splits = {'validation': 'val.', 'test': 'test'}
    for short in splits.values():
        for metric in shown.values():
            runs.add_column(f'{short} {metric.title}', justify='right')
    runs.add_column('images/s', justify='right')
    for row in result['runs']:
        cells = [
            '–' if row[split] is None else metric.show(row[split].get(name))
            for split in splits
            for name, metric in shown.items()
        ]
        speed = row['images_per_second']
        checkpoint = '–' if row['checkpoint'] is None else str(row['checkpoint'])
        runs.add_row(
            row['run'], row['model'], checkpoint, *cells, '–' if speed is None else f'{speed:,.0f}'
        )
    # The pairs: how many examples only one of the two runs classifies correctly.
    title = f"correct {result['split']} predictions, McNemar's exact test"
    names = [Column(header, no_wrap=True) for header in ('first', 'second')]
    pairs = Table(*names, 'only first', 'only second', 'p', title=title)
    for pair in result['pairs']:
        if pair['error']:
            pairs.add_row(pair['first'], pair['second'], pair['error'])
        else:
            figures = (str(pair['only_first']), str(pair['only_second']), f'{pair["p_value"]:.3g}')
            pairs.add_row(pair['first'], pair['second'], *figures)
    return [runs, pairs]


def _selection(path: Path) -> Selection:
    """Returns the metric that selects a run's best checkpoint."""
    return Selection(read_task(path), workdir_lib.read_config(path).training.best_by)


def _shown(paths: Sequence[Path]) -> dict[str, Metric]:
    """Returns the metrics of a comparison: the selection metric of each run, and the loss."""
    shown: dict[str, Metric] = {}
    for path in paths:
        selection = _selection(path)
        shown[selection.name] = selection.metric
    # The loss comes last; a user-defined task may have none.
    loss = read_task(paths[0]).metrics.get('loss')
    return shown if loss is None else {**shown, 'loss': loss}


def short_names(paths: Sequence[Path]) -> list[str]:
    """Shortens paths to their last distinct parts, and trials of a sweep to their values."""
    # Take one more part of the paths until all names differ.
    for count in range(1, max(len(p.parts) for p in paths) + 1):
        names = [str(Path(*p.parts[-count:])) for p in paths]
        if len(set(names)) == len(names):
            return _values(names) if count == 1 else names
    return [str(p) for p in paths]


def _values(names: list[str]) -> list[str]:
    """Shortens trial names to the values that differ.

    For example, 'model.shortcut=A,seed=0' and 'model.shortcut=B,seed=0' become 'shortcut=A' and
    'shortcut=B'. Names that are not of trials of one sweep are returned unchanged.
    """
    # All names must be lists of 'key=value' with the same keys.
    trials = [name.split(',') for name in names]
    keys = [[value.partition('=')[0] for value in values if '=' in value] for values in trials]
    if any(
        own != keys[0] or len(own) < len(values) for own, values in zip(keys, trials, strict=True)
    ):
        return names
    # Keep the keys whose values differ, without their sections.
    differ = [i for i in range(len(keys[0])) if len({values[i] for values in trials}) > 1]
    short = [key.rpartition('.')[2] for key in keys[0]]
    return [
        ','.join(f'{short[i]}={values[i].partition("=")[2]}' for i in differ) for values in trials
    ]


def _figures(path: Path, name: str) -> dict[str, Any]:
    """Returns a run's row: model, best checkpoint, and its recorded metrics."""
    config = workdir_lib.read_config(path)
    records = workdir_lib.read_records(path)
    best = None  # a run that has just started has no checkpoint yet
    if (path / 'checkpoints').is_dir():
        with open_checkpoints(path, read_task(path), config.training.best_by) as checkpoints:
            best = checkpoints.find('best') if checkpoints.steps() else None
    # Collect the throughput, and the recorded metrics of the best checkpoint.
    rates = [r['images_per_second'] for r in records if r.get('images_per_second')]
    found = {} if best is None else results(path, best)
    return {
        'run': name,
        'workdir': str(path),
        'model': config.model.name,
        'step': records[-1]['step'] if records else 0,
        'checkpoint': best,
        'validation': found.get('validation'),
        'test': found.get('test'),
        'images_per_second': float(np.median(rates)) if rates else None,
    }


def _try_predict(path: Path, split: str) -> Predicted | str:
    try:
        return predict_run(load_run(path), split)
    except UserError as e:
        return str(e)


def _pair(first: Predicted | str, second: Predicted | str) -> dict[str, Any]:
    if isinstance(first, str) or isinstance(second, str):
        return {'error': first if isinstance(first, str) else second}
    # McNemar's test is paired: both runs must have predictions for the same examples.
    one, other = first.predictions, second.predictions
    labels = [p.columns.get('label', p.ids) for p in (one, other)]
    if first.source.name != second.source.name or not np.array_equal(labels[0], labels[1]):
        return {'error': 'the runs were not tested on the same examples'}
    if one.correct is None or other.correct is None:
        return {'error': 'the task does not define correct predictions'}
    return mcnemar(one.correct, other.correct)._asdict()


def _steps_per_epoch(path: Path) -> float:
    examples = workdir_lib.read_json(path, 'dataset.json')['num_examples']['train']
    return examples / workdir_lib.read_config(path).training.batch_size
