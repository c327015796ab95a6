"""Several runs beside one another: their curves, their figures, and whether they differ."""

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

_LEGEND = 125  # letters that fit below the picture


def compare(workdirs: Iterable[AnyPath] | AnyPath, split: str = 'test') -> dict[str, Any]:
    """Compares the best checkpoints of runs.

    Args:
      workdirs: of two runs or more; they may still be training.
      split: whose examples McNemar's test takes.

    Returns:
      `runs`: each one's `run` (its name), `workdir`, `model`, `step` (the last recorded),
      `checkpoint` (the best) and the metrics of it, as recorded, by split, and the median of
      `images_per_second`. `pairs`: for each two of them `first`, `second`, `only_first`,
      `only_second` (examples that only that one has right) and `p_value`, or `error`: why there is
      none.

    Raises:
      UserError: fewer than two runs, one of them twice, or no workdir.
    """
    paths = [Path(w).expanduser().absolute() for w in as_list(workdirs)]
    if len(paths) < 2:
        raise UserError('name at least two runs')
    if len(set(paths)) < len(paths):
        raise UserError('a run is named twice')
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
    """Draws the curves of one run or several: the loss, and the metric that they are selected by, over epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    paths = [Path(w).expanduser().absolute() for w in as_list(workdirs)]
    names = short_names(paths)
    figure = Figure(figsize=(11, 4.2), dpi=120, layout='constrained')
    axes = figure.subplots(1, 2)
    chosen = _selection(paths[0])
    for i, (workdir, name) in enumerate(zip(paths, names, strict=True)):
        records, per_epoch = workdir_lib.read_records(workdir), _steps_per_epoch(workdir)
        shown = legible(name).replace('$', r'\$')  # no formula
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
    handles, labels = axes[1].get_legend_handles_labels()
    columns = max(1, _LEGEND // (max(map(len, names)) + 7))  # a line and its margins: 7 letters
    figure.legend(handles, labels, loc='outside lower center', ncols=min(len(paths), columns))
    figure.suptitle('validation (lines) and training (dots)', fontsize=10)
    return figure


def compare_tables(result: dict[str, Any]) -> list[Table]:
    """The result of `compare` as text."""
    runs = Table(
        Column('run', no_wrap=True), 'model', 'step', title='the best checkpoint of each run'
    )
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
        rate = row['images_per_second']
        checkpoint = '–' if row['checkpoint'] is None else str(row['checkpoint'])
        runs.add_row(
            row['run'], row['model'], checkpoint, *cells, '–' if rate is None else f'{rate:,.0f}'
        )
    title = f"right answers on the {result['split']} examples, McNemar's exact test"
    names = [Column(header, no_wrap=True) for header in ('first', 'second')]
    pairs = Table(*names, 'first alone', 'second alone', 'p', title=title)
    for pair in result['pairs']:
        if pair['error']:
            pairs.add_row(pair['first'], pair['second'], pair['error'])
        else:
            figures = (str(pair['only_first']), str(pair['only_second']), f'{pair["p_value"]:.3g}')
            pairs.add_row(pair['first'], pair['second'], *figures)
    return [runs, pairs]


def _selection(path: Path) -> Selection:
    """The metric that a run's checkpoints are selected by."""
    return Selection(read_task(path), workdir_lib.read_config(path).training.best_by)


def _shown(paths: Sequence[Path]) -> dict[str, Metric]:
    """The metrics of a comparison: what each run is selected by, and the loss."""
    shown: dict[str, Metric] = {}
    for path in paths:
        selection = _selection(path)
        shown[selection.name] = selection.metric
    loss = read_task(paths[0]).metrics.get('loss')
    return shown if loss is None else {**shown, 'loss': loss}


def short_names(paths: Sequence[Path]) -> list[str]:
    """Short names of paths: their last parts, as few as tell them apart; of a sweep's trials, the values."""
    for count in range(1, max(len(p.parts) for p in paths) + 1):
        names = [str(Path(*p.parts[-count:])) for p in paths]
        if len(set(names)) == len(names):
            return _values(names) if count == 1 else names
    return [str(p) for p in paths]


def _values(names: list[str]) -> list[str]:
    """Of 'model.shortcut=A,seed=0' and 'model.shortcut=B,seed=0': 'shortcut=A' and 'shortcut=B'."""
    trials = [name.split(',') for name in names]
    keys = [[value.partition('=')[0] for value in values if '=' in value] for values in trials]
    if any(
        own != keys[0] or len(own) < len(values) for own, values in zip(keys, trials, strict=True)
    ):
        return names
    differ = [i for i in range(len(keys[0])) if len({values[i] for values in trials}) > 1]
    short = [key.rpartition('.')[2] for key in keys[0]]
    return [
        ','.join(f'{short[i]}={values[i].partition("=")[2]}' for i in differ) for values in trials
    ]


def _figures(path: Path, name: str) -> dict[str, Any]:
    config = workdir_lib.read_config(path)
    records = workdir_lib.read_records(path)
    best = None
    if (path / 'checkpoints').is_dir():
        with open_checkpoints(path, read_task(path), config.training.best_by) as checkpoints:
            best = checkpoints.find('best') if checkpoints.steps() else None
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
    ours, theirs = first.predictions, second.predictions
    labels = [p.columns.get('label', p.ids) for p in (ours, theirs)]
    if first.source.name != second.source.name or not np.array_equal(labels[0], labels[1]):
        return {'error': 'they were not tested on the same examples'}
    if ours.correct is None or theirs.correct is None:
        return {'error': 'their task does not tell right answers from wrong ones'}
    return mcnemar(ours.correct, theirs.correct)._asdict()


def _steps_per_epoch(path: Path) -> float:
    examples = workdir_lib.read_json(path, 'dataset.json')['num_examples']['train']
    return examples / workdir_lib.read_config(path).training.batch_size
