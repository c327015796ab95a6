"""Evaluations of trained runs by their description: which data, which views, which weights.

An evaluation is an entry as `vision.core.config.default_eval()` has it; a run's config names its
own in `config.evals`.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vision import data
from vision.core.config import complete_eval
from vision.core.errors import UserError, unknown
from vision.data.source import ArraySource, Source, count_named
from vision.evaluation import metrics, protocols
from vision.evaluation.classes import match
from vision.evaluation.predictions import Predictions
from vision.evaluation.run import Run, check_data, check_shape, load_run
from vision.evaluation.scores import Member, Progress, predict_source

# What another data set has in common with the run's own: how it is read, not what it is.
_HOW_TO_READ = ('source', 'data_dir', 'in_memory', 'cache', 'max_corrupt')


# Given an evaluation's name and how many examples will be fed; returns what is told how many were.
Start = Callable[[str, int], Progress]


def _silent(name: str, total: int) -> Progress:
    return lambda done: None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What came of one evaluation.

    Attributes:
      name: the split's, or the entry's in `config.evals`.
      entry: complete.
      source: the data.
      predictions: of every example.
      figures: JSON: see `figures_of`, with `split`, `checkpoint`, `corrupt` and, where they are not
        the run's own test protocol and data, `data`, `classes` (how many are compared, where not
        all are), `protocol`, `ops`, `weights` and `models`.
      corrupt: the images that could not be read: name → reason.
    """

    name: str
    entry: ConfigDict
    source: Source
    predictions: Predictions
    figures: dict[str, Any]
    corrupt: dict[str, str]


def evaluate_runs(
    workdirs: Sequence[str | os.PathLike],
    entries: dict[str, ConfigDict],
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
    runs: dict[str | None, list[Run]] = {}
    done = []
    for name, entry in entries.items():
        if entry.weights not in runs:
            runs[entry.weights] = [load_run(w, checkpoint, entry.weights) for w in workdirs]
        done.append(evaluate_entry(runs[entry.weights], name, entry, skip_corrupt, progress))
    return next(iter(runs.values())), done


def evaluate_entry(
    runs: list[Run],
    name: str,
    entry: ConfigDict,
    skip_corrupt: bool = False,
    progress: Start = _silent,
) -> Evaluation:
    """Evaluates loaded runs in one way; see `evaluate_runs`."""
    first = runs[0]
    _check_same_classes(runs)
    source, own = _open(first, entry)
    for run in runs:
        if own:
            check_data(run, source)
        elif isinstance(source, ArraySource):
            check_shape(run, source)
    classes = match(first.class_names, source, entry.classes)
    members = [Member(run, view) for run in runs for view in _passes(run, entry)]
    told = progress(name, len(members) * source.num_examples)
    predictions, corrupt = predict_source(members, source, classes, skip_corrupt, told)
    figures = {
        'split': entry.split,
        'checkpoint': first.step,
        **figures_of(predictions),
        'corrupt': count_named(source, corrupt),
    }
    if not own:
        figures['data'] = source.name
    if classes.logits is not None:
        figures['classes'] = len(classes.names)
    figures |= {k: entry[k] for k in ('protocol', 'ops', 'weights') if entry[k]}
    if len(runs) > 1:
        figures['models'] = [str(run.path) for run in runs]
    return Evaluation(name, entry, source, predictions, figures, corrupt)


def figures_of(predictions: Predictions, resamples: int = metrics.RESAMPLES) -> dict[str, Any]:
    """The figures of a split.

    Args:
      predictions: of its examples.
      resamples: of the bootstrap.

    Returns:
      `top1`, `top5` (fractions of 1; `top5` None under 5 classes), `loss`, `count`,
      `balanced_accuracy`, `ece`, `brier`, and `intervals`, (low, high) of 95 % for each of them.
      A figure that is no number is None.
    """
    p = predictions
    n, correct = len(p), p.correct
    figures: dict[str, Any] = {
        'top1': int(correct.sum()) / n,
        'top5': int((p.rank < 5).sum()) / n if len(p.class_names) >= 5 else None,
        'loss': math.fsum(p.loss) / n,
        'count': n,
        'balanced_accuracy': metrics.balanced_accuracy(p.labels, correct),
        'ece': metrics.expected_calibration_error(p.confidence, correct),
        'brier': math.fsum(p.squared_error) / n,
    }
    intervals = metrics.intervals(
        p.labels, p.rank, p.loss, p.confidence, p.squared_error, resamples=resamples
    )
    figures = {k: None if v is None or not np.isfinite(v) else v for k, v in figures.items()}
    figures['intervals'] = {k: list(v) for k, v in intervals.items() if figures[k] is not None}
    return figures


def named_entries(
    config: ConfigDict, names: Iterable[str] | None, overrides: ConfigDict
) -> dict[str, ConfigDict]:
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
    evals = config.get('evals', ConfigDict())
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


def _name(entry: ConfigDict) -> str:
    """A file name for an evaluation that the config does not name."""
    words = [entry.data.get('name'), entry.data.get('path'), entry.split, entry.protocol]
    if entry.ops:
        words.append(entry.ops.split('|')[-1])
    words.append(entry.weights)
    text = '_'.join(os.path.basename(str(w).rstrip('/')) for w in words if w)
    return ''.join(c if c.isalnum() or c in '-.' else '_' for c in text).strip('_')


def _open(run: Run, entry: ConfigDict) -> tuple[Source, bool]:
    """Opens the data of an evaluation, and says whether they are the run's own."""
    own = not {'source', 'name', 'path'} & set(entry.data)
    inherited = run.config.data.to_dict()
    if not own:
        inherited = {k: v for k, v in inherited.items() if k in _HOW_TO_READ}
    return data.load(ConfigDict(inherited | entry.data.to_dict()), entry.split), own


def _passes(run: Run, entry: ConfigDict) -> list[protocols.Pass]:
    if entry.ops:
        return [protocols.Pass(entry.ops)]
    return protocols.passes(entry.protocol, run.config.preprocess.eval, run.input_shape[0])


def _check_same_classes(runs: list[Run]) -> None:
    for run in runs[1:]:
        if run.class_names != runs[0].class_names:
            raise UserError(
                f'{run.path} and {runs[0].path} tell other classes apart '
                f'({len(run.class_names)} and {len(runs[0].class_names)}): no ensemble'
            )
