"""Initialisation from pretrained weights: `config.init_from`."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError, similar
from vision.core.state import TrainState
from vision.evaluation.run import load_run
from vision.models.base import is_head
from vision.models.positions import resize_positions
from vision.models.vit import VisionTransformer
from vision.models.weights.packages import is_packaged
from vision.models.weights.pretrained import load_pretrained, model_arguments


def init_from(source: str, model_name: str, state: TrainState) -> TrainState:
    """Replaces the parameters of an initial state by pretrained ones."""
    return placed(read_weights(source, model_name, state.variables), state)


def read_weights(source: str, model_name: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Reads pretrained weights.

    If the source has another number of classes, the model's classifier keeps its initial values,
    and a warning names the layer.

    Args:
      source: a workdir (its best checkpoint), a `.safetensors` or `.pth` file, 'hf:org/name', or
        the name of packaged weights, such as 'efficientnet_lite0'.
      model_name: name of the model in the registry.
      variables: params and batch_stats of the model, or their shapes.

    Returns:
      The weights as a PyTree like `variables`. A variable that keeps its initial value is
      represented by its shape.

    Raises:
      UserError: the source cannot be read, belongs to another model (all differences are named), or
        has values that are not finite.
    """
    # Tell workdirs, files and hub names apart.
    shapes = mesh_lib.abstract(variables)
    if os.path.isdir(source):
        return _from_run(source, shapes)
    if not (source.startswith('hf:') or is_packaged(source) or os.path.exists(source)):
        raise UserError(f'init_from={source}: no such file or workdir{similar(source)}')
    return load_pretrained(source, model_name, shapes)


def warn_of_arguments(source: str, model_name: str, model: Any) -> None:
    """Warns if another library's weights were trained with other arguments of the model."""
    for key, value in model_arguments(model_name, source).items():
        own = getattr(model, key, value)
        if own != value:
            logging.warning(
                '%s was trained with model.%s=%s; this run has %s', source, key, value, own
            )


def placed(weights: dict[str, Any], state: TrainState) -> TrainState:
    """Puts weights from `read_weights` into an initial state, with the state's sharding."""
    placed = jax.tree.map(
        lambda new, old: (
            old
            if isinstance(new, jax.ShapeDtypeStruct)
            else mesh_lib.put(np.asarray(new, old.dtype), old.sharding)
        ),
        weights,
        state.variables,
    )
    # A moving average starts from the same weights.
    ema = {'params': None, 'batch_stats': None} if state.ema_params is None else _copy(placed)
    return dataclasses.replace(
        state,
        params=placed['params'],
        batch_stats=placed['batch_stats'],
        ema_params=ema['params'],
        ema_batch_stats=ema['batch_stats'],
    )


def _from_run(workdir: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Reads the best checkpoint of a run and matches its variables with the model's by path."""
    run = load_run(workdir)
    saved = flatten_dict(jax.device_get(run.variables))
    expected = flatten_dict(variables)
    result, fresh = dict(expected), set()
    problems = [f'surplus {_name(path)}' for path in saved if path not in expected]
    # A classifier of another shape keeps its initial values; any other difference is an error.
    for path, value in expected.items():
        # Position embeddings are resized to the model's grid.
        if (
            path in saved
            and path[1:] == ('pos_embed',)
            and isinstance(run.model, VisionTransformer)
        ):
            saved[path] = resize_positions(saved[path], value.shape[:2], run.model.resize)
        if path not in saved:
            problems.append(f'missing {_name(path)}')
        elif saved[path].shape == value.shape:
            result[path] = saved[path]
        elif is_head(path[1:]):
            fresh.add(_name(path[:-1]))
        else:
            problems.append(f'misshapen {_name(path)} {saved[path].shape}, not {value.shape}')
    if problems:
        raise UserError(f'init_from={workdir} does not match the model: {"; ".join(problems)}')
    if fresh:
        layers = ', '.join(sorted(fresh))
        logging.warning('%s has other classes: %s keep their initial values', workdir, layers)
    # `flatten_dict` drops empty subtrees: add `batch_stats` for models without BatchNorm.
    return {'batch_stats': {}, **unflatten_dict(result)}


def _name(path: tuple[str, ...]) -> str:
    """Returns the name of a parameter or layer, without its collection."""
    return '/'.join(path[1:])


def _copy(tree: Any) -> Any:
    """Copies all arrays, because the state is donated and must not contain a buffer twice."""
    return jax.tree.map(lambda x: x.copy(), tree)
