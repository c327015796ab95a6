"""Checks that a run must pass before its workdir is changed, and the first state of a run."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import jax
from absl import logging

from vision.core import mesh as mesh_lib
from vision.core import processes
from vision.core import workdir as workdir_lib
from vision.core.checkpoints import newest_step
from vision.core.errors import UserError
from vision.core.progress import phase
from vision.core.state import TrainState
from vision.data import identity
from vision.models.base import init_variables
from vision.training.setup import Setup
from vision.training.step import init_state

# Below this number of images, an accuracy of 90 % has a standard error of more than 3 points, so
# that checkpoints which differ by 6 points are not told apart.
_FEW = 100
_ADVICE = 'Use the data that the run was started with, or another --workdir'


@dataclasses.dataclass(frozen=True)
class Start:
    """Data identities and weights that were read while the start of a run was checked.

    Attributes:
      examples: identities of the examples by split, from `vision.data.identity`; empty on all
        processes except the first.
      weights: the weights that `init_from` names, for a new run; else None.
      extra: the result of `Task.read`, for a new run; else None.
    """

    examples: dict[str, identity.Examples]
    weights: Any
    extra: Any


@phase('checking the run')
def check_start(run: Setup, path: Path | None = None) -> Start:
    """Checks a run against its workdir and its initial weights; writes nothing.

    Args:
      run: the result of `setup`.
      path: the workdir, which need not exist; None for a dry run.

    Raises:
      UserError: the workdir holds a run with another config or other data, or damaged records; or
        the weights cannot be read or belong to another model.
    """
    # The first process compares config, records and data with those in the workdir.
    examples: dict[str, identity.Examples] = {}

    def look() -> bool:
        examples.update(identity.examples_of(run.sources))
        if path is None:
            return False
        workdir_lib.check_config(path, run.config)
        workdir_lib.read_records(path)
        identity.check_unchanged(path, run.dataset, examples, _ADVICE)
        return any(newest_step(p) is not None for p in (path, path / workdir_lib.INTERRUPTED))

    begun, weights, source = processes.on_first(look), None, run.init_from
    # Pretrained weights and a teacher's are needed for step 0 only.
    extra = None if begun else processes.together(run.task.read)
    if source is not None and not begun:
        from vision.training.init_from import read_weights, warn_of_arguments

        shapes = jax.eval_shape(
            lambda: init_variables(run.model, run.input_shape, jax.random.key(0))
        )
        weights = processes.together(lambda: read_weights(source, run.model_name, shapes))
        warn_of_arguments(source, run.model_name, run.model)
    return Start(examples, weights, extra)


def warn_of_selection(run: Setup) -> None:
    """Warns if few validation images select the best checkpoint by a fraction of right answers."""
    source, metric, data = run.validation, run.selection.metric, run.config.data
    accuracy = metric.fraction and metric.higher_is_better
    if source is None or not accuracy or not processes.is_first():
        return
    count = source.num_examples
    if count >= _FEW:
        return
    # Advise only what the task and the data accept.
    advice = []
    if 'loss' in run.task.metrics:
        advice.append('select by the loss, --config.training.best_by=loss')
    if data.validation is not None:
        advice.append(f'hold out more images than --config.data.validation={data.validation}')
    elif data.source == 'folder' and data.rules > 1 and not _has_validation(data.path):
        advice.append('hold out more images, --config.data.validation=20%')
    logging.warning(
        '%s: %d images select the best checkpoint by %s. An accuracy of 90 %% has a standard error '
        'of %.0f points%s',
        source.name, count, metric.title, 100 * math.sqrt(0.9 * 0.1 / count),
        ''.join([': ', ', or '.join(advice)] if advice else []),
    )  # fmt: skip


def _has_validation(folder: str) -> bool:
    """True if a folder of photos has a folder for validation."""
    from vision.data.folder import split_folders

    return 'validation' in split_folders(os.path.expanduser(folder))


@phase('making the first state')
def first_state(run: Setup, start: Start) -> TrainState:
    """Makes the state of step 0, from initial values and from what `check_start` has read."""
    state = init_state(run.recipe, run.input_shape, run.mesh)
    if start.extra is not None:
        _check_like(start.extra, state.extra)
        extra = mesh_lib.put_state(start.extra, run.mesh, run.recipe.shard)
        state = dataclasses.replace(state, extra=extra)
    if start.weights is None:
        return state
    from vision.training.init_from import placed

    return placed(start.weights, state)


def _check_like(read: Any, made: Any) -> None:
    """Raises UserError unless `Task.read` has the tree, shapes and types of `Task.init`."""
    one, other = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (read, made))
    if one != other:
        raise UserError(
            "the task's `read` and `init` differ in their keys, shapes or types, so the run could "
            'not be resumed; `init` must return values like those of `read`'
        )
