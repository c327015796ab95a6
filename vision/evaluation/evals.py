"""Evaluations of trained runs, each described by an entry: data, split, protocol and weights.

`vision.core.config.default_eval()` lists the keys of an entry. A run's config names its own entries
in `config.evals`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging

from vision.core.config import complete_eval, default_eval, plain
from vision.core.config_keys import find
from vision.core.errors import UserError, unknown
from vision.core.progress import phase, progress_bar
from vision.core.text import AnyPath, as_list, json_text
from vision.data import registry as data
from vision.data.shares import ALL, SPLITS
from vision.data.source import NoSplitError, Source, count_named
from vision.evaluation import protocols
from vision.evaluation.answers import Labels, Member, Progress, answer, make_step
from vision.evaluation.classes import Classes, match
from vision.evaluation.figures import intervals
from vision.evaluation.predictions import Predictions
from vision.evaluation.run import Run, check_data, check_shape, load_run
from vision.evaluation.whole import WholeBatches
from vision.preprocess import inputs
from vision.preprocess.device import Batch
from vision.task.metrics import figures

# Keys of `config.data` that also apply to another data set: they control how data are read, not
# which data.
_HOW_TO_READ = ('source', 'data_dir', 'in_memory', 'cache', 'max_corrupt')
_SHARES = ('validation', 'test', 'fold')  # keys of the data that split a folder


# Called with an evaluation's name and number of examples; returns a function that is called with
# the number of examples done so far.
Start = Callable[[str, int], Progress]


def _silent(name: str, total: int) -> Progress:
    """Shows no progress."""
    return lambda done: None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of one evaluation.

    Attributes:
      name: name of the split, or of the entry in `config.evals`.
      entry: the entry, with all keys.
      source: the data.
      predictions: predictions for every example.
      figures: values for JSON: the task's metrics, `count`, `intervals` (95 % confidence intervals
        (low, high) by metric), `split`, `checkpoint` and `corrupt`. If they differ from the run's
        own evaluation, also `data`, `classes` (number of compared classes), `protocol`, `ops`,
        `weights` and `models`.
      corrupt: unreadable images: name → reason.
      saved_as: the name of the file of its predictions, see `evaluate_runs`; by default `name`.
    """

    name: str
    entry: Mapping[str, Any]
    source: Source
    predictions: Predictions
    figures: dict[str, Any]
    corrupt: dict[str, str]
    saved_as: str = ''

    def __post_init__(self):
        object.__setattr__(self, 'saved_as', self.saved_as or self.name)


def evaluate_runs(
    workdirs: Iterable[AnyPath] | AnyPath,
    entries: Mapping[str, Mapping[str, Any]],
    checkpoint: str = 'best',
    skip_corrupt: bool = False,
    progress: Start = _silent,
) -> tuple[list[Run], list[Evaluation]]:
    """Evaluates a run, or several as an ensemble, once per entry.

    Args:
      workdirs: workdirs of the runs. The probabilities of several runs are averaged. All runs must
        have the same classes; the data are those of the first run.
      entries: entries by name, from `named_entries`.
      checkpoint: 'best', 'last' or a step.
      skip_corrupt: whether to skip unreadable images.
      progress: starts a progress display.

    Returns:
      The runs, and the evaluations. The attribute `saved_as` of an evaluation is its name; a digest
      follows if the entry differs from that of this name in the run's config, and the checkpoint
      unless it is the best one.

    Raises:
      UserError: a missing run, checkpoint, weights, data or protocol, or unreadable images.
    """
    paths, runs = as_list(workdirs), dict[str | None, list[Run]]()
    done = []
    for name, entry in entries.items():
        # Load each kind of weights ('ema', 'raw') once.
        if entry['weights'] not in runs:
            with phase('reading the checkpoint'):
                runs[entry['weights']] = [load_run(w, checkpoint, entry['weights']) for w in paths]
        some = runs[entry['weights']]
        found = evaluate_entry(some, name, entry, skip_corrupt, progress)
        words = [name, *_changes(some[0], name, entry), *([checkpoint] * (checkpoint != 'best'))]
        done.append(dataclasses.replace(found, saved_as='_'.join(words)))
    return next(iter(runs.values())), done


def _changes(run: Run, name: str, entry: Mapping[str, Any]) -> list[str]:
    """Returns a digest of an entry if the run's config has another one of this name."""
    own = run.config.get('evals', {}).get(name)
    if own is None or plain(complete_eval(own)) == plain(entry):
        return []
    return [_digest(plain(entry))]


def evaluate_entry(
    runs: list[Run],
    name: str,
    entry: Mapping[str, Any],
    skip_corrupt: bool = False,
    progress: Start = _silent,
) -> Evaluation:
    """Evaluates loaded runs on one entry; see `evaluate_runs`."""
    # Open the data, and check that they are the data that the runs were trained on.
    first = runs[0]
    _check_same_classes(runs)
    source, own = _open(first, entry)
    parts = {entry['split']: source}
    if own and entry['split'] == ALL:
        parts = dict(_splits(first, entry))
    for run in runs:
        if own:
            # Keys other than these, such as the validation fraction, change which examples a split
            # has, so that only classes and shape can be checked.
            same = set(entry['data']) <= set(_HOW_TO_READ)
            for split, part in parts.items():
                check_data(run, part, split if same else None)
        else:
            check_shape(run, source)
    # Compute the answers over all runs and passes: each run makes each pass, and all outputs are
    # averaged.
    classes = match(first.class_names, source, entry['classes'])
    passes = [(run, view) for run in runs for view in _passes(run, entry)]
    report_done = progress(name, len(passes) * source.num_examples)
    _, predictions, corrupt = _predict(passes, source, classes, skip_corrupt, report_done)
    # Collect the metrics, with everything that differs from the run's own data and preprocessing.
    found = {
        'split': entry['split'],
        'checkpoint': first.step,
        **figures(predictions.task, predictions.columns),
        'intervals': intervals(predictions.task, predictions.columns),
        'corrupt': count_named(source, corrupt),
    }
    if not own:
        found['data'] = source.name
    if classes.logits is not None:
        found['classes'] = len(classes.names)
    found |= {k: entry[k] for k in ('protocol', 'ops', 'weights') if entry[k]}
    if len(runs) > 1:
        found['models'] = [str(run.path) for run in runs]
    return Evaluation(name, entry, source, predictions, found, corrupt)


class Predicted(NamedTuple):
    """Predictions for a source, and the unreadable images: name → reason."""

    source: Source
    predictions: Predictions
    corrupt: dict[str, str]


def predict_run(run: Run, split: str = 'test') -> Predicted:
    """Returns the predictions of a run for one split of its own data.

    Args:
      run: the result of `load_run`.
      split: train, validation or test.

    Raises:
      UserError: the split does not exist, the data have changed, or an image cannot be read.
    """
    source = data.load(run.config.data, split)
    check_data(run, source, split)
    view = protocols.Pass(run.config.preprocess.eval)
    classes = match(run.class_names, source)
    with progress_bar() as start:
        move = start(f'evaluating {run.path.name}', source.num_examples)
        return _predict([(run, view)], source, classes, False, move)


def _predict(
    passes: list[tuple[Run, protocols.Pass]],
    source: Source,
    classes: Classes,
    skip_corrupt: bool,
    progress: Progress,
) -> Predicted:
    """Computes the answers of all passes over a split, averaged if there are several."""
    task = passes[0][0].task.with_class_names(classes.names)
    for run, _ in passes:
        run.task.check(source)
    labels = Labels(classes.logits, classes.labels, len(classes.names))
    # One member per run and pass.
    members, every = [], []
    for run, view in passes:
        # Models that support dense evaluation have a field that enables it.
        model = run.model
        if view.dense and hasattr(model, 'dense_evaluation'):
            model = model.clone(dense_evaluation=True)
        own = run.task.with_class_names(classes.names)
        step = make_step(own, model, run.mesh, labels, judge=len(passes) == 1)
        batches = _batches(run, view, source, skip_corrupt)
        every.append(batches)
        fed = _checked(run, view, batches)
        skipped = functools.partial(count_named, source, batches.corrupt)
        members.append(Member(step, run.variables, fed, skipped))
    # Collect the answers, the unreadable images and the paths.
    columns = answer(
        task,
        members,
        source.num_examples,
        lambda given: classes.check(given, source),
        progress,
    )
    corrupt = {name: why for batches in every for name, why in batches.corrupt.items()}
    for name, why in corrupt.items() if skip_corrupt else ():
        logging.warning('%s: %s', name[:1000].encode('utf-8', 'backslashreplace').decode(), why)
    # Skipped examples have no path in the result.
    paths = source.paths and tuple(source.paths[i] for i in columns['id'])
    return Predicted(source, Predictions(task, columns, paths), corrupt)


def _batches(
    run: Run, view: protocols.Pass, source: Source, skip_corrupt: bool
) -> 'inputs.EvalBatches | WholeBatches':
    """Returns the batches of a pass, which are smaller if an image has several views."""
    # Dense batches have two images per example, so they are half as large.
    size = run.config.evaluation.batch_size
    if view.dense:
        return WholeBatches(source, view.ops, max(1, size // 2), run.mesh, skip_corrupt)
    if view.ops == run.config.preprocess.eval:
        return inputs.EvalBatches(source, view.ops, size, run.mesh, skip_corrupt)
    shape = inputs.input_shape(source, view.ops)
    views = shape[0] if len(shape) == 4 else 1
    return inputs.EvalBatches(source, view.ops, max(1, size // views), run.mesh, skip_corrupt)


def _checked(run: Run, view: protocols.Pass, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields the batches; raises UserError if their image shape differs from that in training."""
    for batch in batches:
        fed = batch['image'].shape[-3:]
        if view.ops == run.config.preprocess.eval and fed != run.input_shape:
            raise UserError(
                f'preprocess.eval makes images of shape {list(fed)} from this data, but the model '
                f'of {run.path} was trained on {list(run.input_shape)}'
            )
        yield batch


def named_entries(
    config: Mapping[str, Any], names: Iterable[str] | None, overrides: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """Returns the evaluations that a command line asks for.

    Args:
      config: config of the run.
      names: keys of `config.evals`, or 'all'; None for a single evaluation, named by its split.
      overrides: keys of an entry, applied to every evaluation.

    Raises:
      UserError: an unknown evaluation or key.
    """
    # Without names there is one evaluation, described by the overrides alone.
    if names is None:
        entry = complete_eval(overrides)
        return {_name(entry): entry}
    evals = config.get('evals', {})
    names = list(names)
    chosen = list(evals) if names == ['all'] else names
    if not chosen:
        raise UserError('--evals: the config of this run has no evals')
    entries = {}
    for name in chosen:
        if name not in evals:
            raise unknown('evaluation', name, [*evals, 'all'])
        # Overrides apply on top of each named entry.
        changed = evals[name].copy_and_resolve_references()
        changed.update(overrides)
        entries[name] = complete_eval(changed, f'config.evals.{name}')
    return entries


def _name(entry: Mapping[str, Any]) -> str:
    """Makes a file name for an evaluation that is not in the config; each entry has its own."""
    # Data, split and everything that differs from the default evaluation.
    kept = dict(entry['data'])
    name, path, ops = kept.pop('name', None), kept.get('path'), entry['ops']
    values = [name, path and os.path.basename(path.rstrip('/')), entry['split'], entry['protocol']]
    values += [ops and ops.split('|')[-1], entry['weights']]
    text = '_'.join(str(value) for value in values if value)
    name = ''.join(c if c.isalnum() or c in '-.' else '_' for c in text).strip('_')
    # A digest distinguishes what the words leave out, such as the parent folder of the path.
    if path:
        kept['path'] = os.path.realpath(path)
    left_out = {'data': kept, 'ops': ops, 'classes': entry['classes']}
    if set(kept) - {'source'} or ops or entry['classes'] != default_eval().classes:
        name += '_' + _digest(left_out)
    return name


def _digest(value: Any) -> str:
    """Returns six characters that distinguish values."""
    return hashlib.sha256(json_text(value, sort_keys=True).encode()).hexdigest()[:6]


def _open(run: Run, entry: Mapping[str, Any]) -> tuple[Source, bool]:
    """Opens the data of an evaluation; also returns whether they are the run's own."""
    # The data are the run's own unless another source, name or path is given.
    own = not {'source', 'name', 'path'} & set(entry['data'])
    inherited = run.config.data.to_dict()
    if not own:
        inherited = {k: v for k, v in inherited.items() if k in _HOW_TO_READ}
        _check_place(entry['data'], entry['data'].get('source', inherited['source']))
    settings = inherited | dict(entry['data'].items())
    source = data.load(settings, entry['split'])
    part = entry['split'] != ALL and not set(settings) & {*_SHARES}
    if part and not own and settings['source'] == 'folder':
        from vision.data.folder import split_folders

        if not split_folders(os.path.abspath(os.path.expanduser(settings['path']))):
            logging.warning(
                '%s: only the %s part of an automatic split is evaluated, %d images; for all images '
                'add --split=all',
                settings['path'],
                entry['split'],
                source.num_examples,
            )
    return source, own


def _splits(run: Run, entry: Mapping[str, Any]) -> Iterator[tuple[str, Source]]:
    """Yields the splits of a run's own data that exist."""
    for split in SPLITS:
        with contextlib.suppress(NoSplitError):
            yield split, _open(run, {**entry, 'split': split})[0]


def _check_place(given: Mapping[str, Any], source: str) -> None:
    """Raises UserError if `name` or `path` is given for a source that does not take it."""
    place = [key for key in ('name', 'path') if given.get(key) is not None]
    takes = inspect.signature(find('data.source', source, data.SOURCES)).parameters
    if place and not any(key in takes for key in place):
        raise UserError(
            f'--eval.data.{place[0]}: the source {source!r} of this run takes no {place[0]}; '
            'name another source, like --eval.data.source=folder'
        )


def _passes(run: Run, entry: Mapping[str, Any]) -> list[protocols.Pass]:
    """Returns the passes of an entry: its ops, its protocol, or the run's own preprocessing."""
    if entry['ops']:
        return [protocols.Pass(entry['ops'])]
    return protocols.passes(entry['protocol'], run.config.preprocess.eval, run.input_shape[0])


def _check_same_classes(runs: list[Run]) -> None:
    """Raises UserError if the runs of an ensemble have different classes."""
    for run in runs[1:]:
        if run.class_names != runs[0].class_names:
            raise UserError(
                f'{run.path} and {runs[0].path} have different classes '
                f'({len(run.class_names)} and {len(runs[0].class_names)}): no ensemble is possible'
            )
