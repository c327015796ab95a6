"""Starting from weights that were trained before: `config.init_from`."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.core.state import TrainState
from vision.core.workdir import read_config
from vision.evaluation.run import load_run, shapes_of
from vision.models.base import is_head
from vision.models.weights.pretrained import load_pretrained, match
from vision.models.weights.state_dicts import read_state_dict
from vision.models.weights.torch_names import torch_names


def init_from(source: str, model_name: str, state: TrainState) -> TrainState:
    """Replaces the parameters of a state of step 0 by trained ones.

    A classifier of another number of classes keeps its initial values; a warning names it.

    Args:
      source: a workdir (its best checkpoint), a `.safetensors` or `.pth` file, or 'hf:org/name'.
      model_name: the model's, in the registry.
      state: of step 0, on its devices; the result is laid out likewise.

    Raises:
      UserError: the source cannot be read, or is of another model; names all that differs.
    """
    variables = mesh_lib.to_host(state.variables)
    if os.path.isdir(source):
        variables = _from_run(source, variables)
    else:
        variables = load_pretrained(source, model_name, variables)
    placed = jax.tree.map(
        lambda new, old: mesh_lib.put(np.asarray(new, old.dtype), old.sharding),
        dict(variables),
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


def check_source(source: str, model_name: str, shapes: dict[str, Any]) -> None:
    """Refuses weights that a model cannot start from, before anything is computed or written.

    What is on the hub is not looked at: it would have to be downloaded.

    Args:
      source: as for `init_from`.
      model_name: the model's, in the registry.
      shapes: of its 'params' and 'batch_stats'.

    Raises:
      UserError: there is no such source, it cannot be read, or it is of another model.
    """
    if source.startswith('hf:'):
        return
    if not os.path.exists(source):
        raise UserError(
            f'init_from={source!r}: no such workdir or file (nor hf:organisation/name of the hub)'
        )
    if os.path.isdir(source):
        if not any((Path(source) / 'checkpoints').glob('[0-9]*')):
            read_config(Path(source))
            raise UserError(f'init_from={source}: the run has no checkpoint')
        _match(source, flatten_dict(shapes_of(Path(source))), flatten_dict(shapes))
    elif problems := match(read_state_dict(source), torch_names(model_name), shapes).problems:
        raise UserError(f'init_from={source} does not fit {model_name}: {"; ".join(problems)}')


def _from_run(workdir: str, variables: dict[str, Any]) -> dict[str, Any]:
    theirs = flatten_dict(jax.device_get(load_run(workdir).variables))
    ours = flatten_dict(variables)
    fitting, fresh = _match(workdir, theirs, ours)
    if fresh:
        logging.warning('%s: %s start afresh (other classes)', workdir, ', '.join(fresh))
    # Where there are no leaves, flattening loses the key.
    return {'batch_stats': {}, **unflatten_dict(ours | {path: theirs[path] for path in fitting})}


def _match(workdir: str, theirs: dict, ours: dict) -> tuple[list[tuple[str, ...]], list[str]]:
    """The paths of variables that a run has for a model, and the layers that start afresh.

    Raises:
      UserError: naming every variable that is missing, surplus or misshapen.
    """
    fitting, fresh = [], set()
    problems = [f'surplus {_name(path)}' for path in theirs if path not in ours]
    for path, value in ours.items():
        if path not in theirs:
            problems.append(f'missing {_name(path)}')
        elif theirs[path].shape == value.shape:
            fitting.append(path)
        elif is_head(path[1:]):
            fresh.add(_name(path[:-1]))
        else:
            problems.append(f'misshapen {_name(path)} {theirs[path].shape}, not {value.shape}')
    if problems:
        raise UserError(f'init_from={workdir} does not fit the model: {"; ".join(problems)}')
    return fitting, sorted(fresh)


def _name(path: tuple[str, ...]) -> str:
    return '/'.join(path[1:])


def _copy(tree: Any) -> Any:
    """Buffers of its own: the state is donated, and no buffer can be donated twice."""
    return jax.tree.map(lambda x: x.copy(), tree)
