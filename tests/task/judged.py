"""Predictions from scores, for tests of classification."""

import functools
import json

import jax
import numpy as np

from vision.core.config import default_config, to_json
from vision.evaluation.figures import intervals
from vision.evaluation.predictions import Predictions
from vision.task import Settings
from vision.task.classification import Classification
from vision.task.metrics import Selection, figures

_ROWS = 64  # rows are padded to a multiple of this, so that few programs are compiled


def task_of(names, **settings):
    """Returns a classification task with these classes."""
    return Classification(Settings(tuple(names), len(names), **settings))


RANK = Selection(task_of('ab')).rank  # top-1, then the loss


@functools.partial(jax.jit, static_argnums=2)
def _answers(scores, labels, num_classes):
    return task_of('x' * num_classes).answers(scores, {}, {'label': labels})


def judged(ids, labels, scores, names, paths=None):
    """Returns predictions for ids [N] and labels [N], from logits [N, K]."""
    n = len(ids)
    padding = -n % _ROWS
    scores = np.pad(np.asarray(scores, np.float32), ((0, padding), (0, 0)))
    labels = np.pad(np.asarray(labels, np.int32), (0, padding))
    columns = {k: np.asarray(v)[:n] for k, v in _answers(scores, labels, len(names)).items()}
    return Predictions(task_of(names), {**columns, 'id': np.asarray(ids)}, paths)


def figures_of(predictions, **kwargs):
    """Returns the metrics and their confidence intervals, as in an evaluation."""
    p = predictions
    return {**figures(p.task, p.columns), 'intervals': intervals(p.task, p.columns, **kwargs)}


def write_workdir(path, names):
    """Writes the files of a workdir that the task is read from: `config.json` and `dataset.json`."""
    (path / 'config.json').write_text(to_json(default_config()))
    dataset = {'class_names': list(names), 'mean': [0.0], 'std': [1.0]}
    (path / 'dataset.json').write_text(json.dumps(dataset))
