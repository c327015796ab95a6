"""Starting from weights that were trained before: `config.init_from`."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.core.state import TrainState
from vision.evaluation.run import load_run
from vision.models.base import is_head
from vision.models.weights.packages import is_packaged
from vision.models.weights.pretrained import load_pretrained


def init_from(source: str, model_name: str, state: TrainState) -> TrainState:
    """Replaces the parameters of a state of step 0 by trained ones: `read_weights`, then `placed`."""
    return placed(read_weights(source, model_name, state.variables), state)


def read_weights(source: str, model_name: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Reads trained weights.

    A classifier of another number of classes keeps its initial values; a warning names it.

    Args:
      source: a workdir (its best checkpoint), a `.safetensors` or `.pth` file, 'hf:org/name', or
        the name of packaged weights, such as 'efficientnet_lite0'.
      model_name: the model's, in the registry.
      variables: params and batch_stats of the model, or their shapes.

    Returns:
      The weights in the same tree; a shape where the initial value stays.

    Raises:
      UserError: the source cannot be read, is of another model (names all that differs), or has values that are
        not finite.
    """
    shapes = mesh_lib.abstract(variables)
    if os.path.isdir(source):
        return _from_run(source, shapes)
    if not (source.startswith('hf:') or is_packaged(source) or os.path.exists(source)):
        raise UserError(f'init_from={source}: there is no such file or workdir')
    return load_pretrained(source, model_name, shapes)


def placed(weights: dict[str, Any], state: TrainState) -> TrainState:
    """Returns a state of step 0 with weights that `read_weights` read, laid out as before."""
    placed = jax.tree.map(
        lambda new, old: (
            old
            if isinstance(new, jax.ShapeDtypeStruct)
            else mesh_lib.put(np.asarray(new, old.dtype), old.sharding)
        ),
        weights,
        state.variables,
    )
    ema = {'params': None, 'batch_stats': None} if state.ema_params is None else _copy(placed)
    return dataclasses.replace(
        state,
        params=placed['params'],
        batch_stats=placed['batch_stats'],
        ema_params=ema['params'],
        ema_batch_stats=ema['batch_stats'],
    )


def _from_run(workdir: str, variables: dict[str, Any]) -> dict[str, Any]:
    theirs = flatten_dict(jax.device_get(load_run(workdir).variables))
    ours = flatten_dict(variables)
    result, fresh = dict(ours), set()
    problems = [f'surplus {_name(path)}' for path in theirs if path not in ours]
    for path, value in ours.items():
        if path not in theirs:
            problems.append(f'missing {_name(path)}')
        elif theirs[path].shape == value.shape:
            result[path] = theirs[path]
        elif is_head(path[1:]):
            fresh.add(_name(path[:-1]))
        else:
            problems.append(f'misshapen {_name(path)} {theirs[path].shape}, not {value.shape}')
    if problems:
        raise UserError(f'init_from={workdir} does not fit the model: {"; ".join(problems)}')
    if fresh:
        logging.warning('%s: %s start afresh (other classes)', workdir, ', '.join(sorted(fresh)))
    # Where there are no leaves, flattening loses the key.
    return {'batch_stats': {}, **unflatten_dict(result)}


def _name(path: tuple[str, ...]) -> str:
    return '/'.join(path[1:])


def _copy(tree: Any) -> Any:
    """Buffers of its own: the state is donated, and no buffer can be donated twice."""
    return jax.tree.map(lambda x: x.copy(), tree)
