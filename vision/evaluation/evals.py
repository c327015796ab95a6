"""Evaluations of trained runs by their description: which data, which views, which weights.

An evaluation is an entry as `vision.core.config.default_eval()` has it; a run's config names its
own in `config.evals`.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from vision.core.config import complete_eval
from vision.core.config_keys import find
from vision.core.errors import UserError, unknown
from vision.core.text import AnyPath, as_list
from vision.data import registry as data
from vision.data.source import Source, count_named
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

# What another data set has in common with the run's own: how it is read, not what it is.
_HOW_TO_READ = ('source', 'data_dir', 'in_memory', 'cache', 'max_corrupt')


# Given an evaluation's name and how many examples will be fed; returns what is told how many were.
Start = Callable[[str, int], Progress]


def _silent(name: str, total: int) -> Progress:
    return lambda done: None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The outcome of one evaluation.

    Attributes:
      name: the split's, or the entry's in `config.evals`.
      entry: complete.
      source: the data.
      predictions: of every example.
      figures: JSON: the task's metrics, `count` and `intervals` ((low, high) of 95 % by metric), with
        `split`, `checkpoint`, `corrupt` and, where they are not the run's own test protocol and data,
        `data`, `classes` (how many are compared, where not all are), `protocol`, `ops`, `weights` and
        `models`.
      corrupt: the images that could not be read: name → reason.
    """

    name: str
    entry: Mapping[str, Any]
    source: Source
    predictions: Predictions
    figures: dict[str, Any]
    corrupt: dict[str, str]


def evaluate_runs(
    workdirs: Iterable[AnyPath] | AnyPath,
    entries: Mapping[str, Mapping[str, Any]],
    checkpoint: str = 'best',
    skip_corrupt: bool = False,
    progress: Start = _silent,
) -> tuple[list[Run], list[Evaluation]]:
    """Evaluates a run, or several as an ensemble, in each of the ways that are asked for.

    Args:
      workdirs: of the runs. The probabilities of several are averaged; they must tell the same
        classes apart, and the data are those of the first.
      entries: by name, as `named_entries` returns them.
      checkpoint: 'best', 'last' or a step.
      skip_corrupt: leave out images that cannot be read.
      progress: starts what shows it.

    Raises:
      UserError: no such run, checkpoint, weights, data or protocol, or images that cannot be read.
    """
    paths, runs = as_list(workdirs), dict[str | None, list[Run]]()
    done = []
    for name, entry in entries.items():
        if entry['weights'] not in runs:
            runs[entry['weights']] = [load_run(w, checkpoint, entry['weights']) for w in paths]
        done.append(evaluate_entry(runs[entry['weights']], name, entry, skip_corrupt, progress))
    return next(iter(runs.values())), done


def evaluate_entry(
    runs: list[Run],
    name: str,
    entry: Mapping[str, Any],
    skip_corrupt: bool = False,
    progress: Start = _silent,
) -> Evaluation:
    """Evaluates loaded runs in one way; see `evaluate_runs`."""
    first = runs[0]
    _check_same_classes(runs)
    source, own = _open(first, entry)
    for run in runs:
        if own:
            # Of other keys of the data, as another share for validation, other examples follow.
            same = set(entry['data']) <= set(_HOW_TO_READ)
            check_data(run, source, entry['split'] if same else None)
        else:
            check_shape(run, source)
    classes = match(first.class_names, source, entry['classes'])
    passes = [(run, view) for run in runs for view in _passes(run, entry)]
    told = progress(name, len(passes) * source.num_examples)
    _, predictions, corrupt = _predict(passes, source, classes, skip_corrupt, told)
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
    """Predictions for a source, and the images that could not be read: name → reason."""

    source: Source
    predictions: Predictions
    corrupt: dict[str, str]


def predict_run(run: Run, split: str = 'test') -> Predicted:
    """The answers of a run for one split of its own data.

    Args:
      run: as `load_run` returns it.
      split: train, validation or test.

    Raises:
      UserError: no such split, data that have changed, or images that cannot be read.
    """
    source = data.load(run.config.data, split)
    check_data(run, source, split)
    view = protocols.Pass(run.config.preprocess.eval)
    classes = match(run.class_names, source)
    return _predict([(run, view)], source, classes, False, lambda done: None)


def _predict(
    passes: list[tuple[Run, protocols.Pass]],
    source: Source,
    classes: Classes,
    skip_corrupt: bool,
    progress: Progress,
) -> Predicted:
    """The answers of the runs' passes over a split, averaged, and the images that could not be read."""
    task = passes[0][0].task.with_class_names(classes.names)
    for run, _ in passes:
        run.task.check(source)
    labels = Labels(classes.logits, classes.labels, len(classes.names))
    members, every = [], []
    for run, view in passes:
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
    columns = answer(
        task,
        members,
        source.num_examples,
        lambda given: classes.check(given, source),
        progress,
    )
    corrupt = {name: why for batches in every for name, why in batches.corrupt.items()}
    paths = source.paths and tuple(source.paths[i] for i in columns['id'])
    return Predicted(source, Predictions(task, columns, paths), corrupt)


def _batches(
    run: Run, view: protocols.Pass, source: Source, skip_corrupt: bool
) -> 'inputs.EvalBatches | WholeBatches':
    size = run.config.evaluation.batch_size
    if view.dense:
        return WholeBatches(source, view.ops, max(1, size // 2), run.mesh, skip_corrupt)
    if view.ops == run.config.preprocess.eval:
        return inputs.EvalBatches(source, view.ops, size, run.mesh, skip_corrupt)
    shape = inputs.input_shape(source, view.ops)
    views = shape[0] if len(shape) == 4 else 1
    return inputs.EvalBatches(source, view.ops, max(1, size // views), run.mesh, skip_corrupt)


def _checked(run: Run, view: protocols.Pass, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, if the run's own preprocessing makes what its model was trained on."""
    for batch in batches:
        fed = batch['image'].shape[-3:]
        if view.ops == run.config.preprocess.eval and fed != run.input_shape:
            raise UserError(
                f'preprocess.eval makes images of {list(fed)} of this data; '
                f'the model of {run.path} was trained on {list(run.input_shape)}'
            )
        yield batch


def named_entries(
    config: Mapping[str, Any], names: Iterable[str] | None, overrides: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """The evaluations that a command line asks for.

    Args:
      config: of the run.
      names: keys of `config.evals`, or 'all' of them; None for a single one, called by its split.
      overrides: what differs in each of them: keys of an entry.

    Raises:
      UserError: an evaluation or a key that does not exist.
    """
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
        changed = evals[name].copy_and_resolve_references()
        changed.update(overrides)
        entries[name] = complete_eval(changed, f'config.evals.{name}')
    return entries


def _name(entry: Mapping[str, Any]) -> str:
    """A file name for an evaluation that the config does not name."""
    words = [
        entry['data'].get('name'),
        entry['data'].get('path'),
        entry['split'],
        entry['protocol'],
    ]
    if entry['ops']:
        words.append(entry['ops'].split('|')[-1])
    words.append(entry['weights'])
    text = '_'.join(os.path.basename(str(w).rstrip('/')) for w in words if w)
    return ''.join(c if c.isalnum() or c in '-.' else '_' for c in text).strip('_')


def _open(run: Run, entry: Mapping[str, Any]) -> tuple[Source, bool]:
    """Opens the data of an evaluation, and says whether they are the run's own."""
    own = not {'source', 'name', 'path'} & set(entry['data'])
    inherited = run.config.data.to_dict()
    if not own:
        inherited = {k: v for k, v in inherited.items() if k in _HOW_TO_READ}
        _check_place(entry['data'], entry['data'].get('source', inherited['source']))
    return data.load(inherited | dict(entry['data'].items()), entry['split']), own


def _check_place(given: Mapping[str, Any], source: str) -> None:
    """Raises UserError if a name or path of other data is given, and the source takes none."""
    place = [key for key in ('name', 'path') if given.get(key) is not None]
    takes = inspect.signature(find('data.source', source, data.SOURCES)).parameters
    if place and not any(key in takes for key in place):
        raise UserError(
            f'--eval.data.{place[0]}: the source {source!r} of this run takes no {place[0]}; '
            'say which one does, as in --eval.data.source=folder'
        )


def _passes(run: Run, entry: Mapping[str, Any]) -> list[protocols.Pass]:
    if entry['ops']:
        return [protocols.Pass(entry['ops'])]
    return protocols.passes(entry['protocol'], run.config.preprocess.eval, run.input_shape[0])


def _check_same_classes(runs: list[Run]) -> None:
    for run in runs[1:]:
        if run.class_names != runs[0].class_names:
            raise UserError(
                f'{run.path} and {runs[0].path} tell other classes apart '
                f'({len(run.class_names)} and {len(runs[0].class_names)}): no ensemble'
            )
