"""The rate that falls when validation no longer improves: `schedule.name='plateau'`.

optax's `reduce_on_plateau`, told of a score at each evaluation and of nothing in between. What it
knows is a part of the optimizer's state, so it is saved and restored with it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from optax.contrib import ReduceLROnPlateauState

from vision.core import mesh as mesh_lib
from vision.core.state import TrainState


def is_plateau(schedule: ConfigDict) -> bool:
    """Whether `config.schedule` is this one."""
    return schedule.name == 'plateau'


def scale_on_plateau(schedule: ConfigDict) -> optax.GradientTransformation:
    """Multiplies updates by the scale that the evaluations so far have led to."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: state.scale * u, updates), state

    return optax.GradientTransformation(_reducer(schedule).init, update)


def scale(opt_state: Any) -> jax.Array | float:
    """What the rate is multiplied by: 1 where the schedule is another one."""
    found = [leaf.scale for leaf in _leaves(opt_state) if _is_state(leaf)]
    return found[0] if found else 1.0


def observe(
    state: TrainState, scores: Mapping[str, Any], cost: float, schedule: ConfigDict, mesh: Mesh
) -> TrainState:
    """Tells the schedule of an evaluation; other schedules leave the state as it is.

    Args:
      state: that was evaluated.
      scores: of the validation split, as `evaluate` returns them.
      cost: the selected metric, so that lower is better.
      schedule: `config.schedule`; with `metric='loss'` the loss counts instead.
      mesh: of all devices.
    """
    if not is_plateau(schedule):
        return state
    value = scores['loss'] if schedule.get('metric') == 'loss' else cost
    placed = mesh_lib.put_replicated(np.float32(value), mesh)
    update = _compiled(tuple(_arguments(schedule).items()), mesh)
    opt_state = jax.tree.map(
        lambda leaf: update(leaf, placed) if _is_state(leaf) else leaf,
        state.opt_state,
        is_leaf=_is_state,
    )
    return dataclasses.replace(state, opt_state=opt_state)


@functools.cache
def _compiled(arguments: tuple[tuple[str, Any], ...], mesh: Mesh) -> Any:
    reducer = optax.contrib.reduce_on_plateau(**dict(arguments))

    def update(state: ReduceLROnPlateauState, value: jax.Array) -> ReduceLROnPlateauState:
        return reducer.update(jnp.zeros(()), state, value=value)[1]

    return jax.jit(update, out_shardings=mesh_lib.replicated(mesh))


def _reducer(schedule: ConfigDict) -> optax.GradientTransformationExtraArgs:
    return optax.contrib.reduce_on_plateau(**_arguments(schedule))


def _arguments(schedule: ConfigDict) -> dict[str, Any]:
    """What of `config.schedule` is optax's."""
    return {k: v for k, v in schedule.items() if k not in ('name', 'warmup', 'metric')}


def _leaves(opt_state: Any) -> list[Any]:
    return jax.tree.leaves(opt_state, is_leaf=_is_state)


def _is_state(node: Any) -> bool:
    return isinstance(node, ReduceLROnPlateauState)
