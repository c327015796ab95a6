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
from optax.contrib import ReduceLROnPlateauState

from vision.core import mesh as mesh_lib
from vision.core.config_keys import own_arguments
from vision.core.state import TrainState


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The settings of a schedule that is told of evaluations.

    Attributes:
      metric: None for what the run selects by, or 'loss'.
      arguments: of optax's `reduce_on_plateau`, by name; the others have optax's defaults.
    """

    metric: str | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def reducer(self) -> optax.GradientTransformationExtraArgs:
        """Optax's transformation."""
        return optax.contrib.reduce_on_plateau(**dict(self.arguments))


def make_plateau(schedule: Mapping[str, Any]) -> Plateau | None:
    """Reads `config.schedule`; None if it names another schedule."""
    if schedule['name'] != 'plateau':
        return None
    given = own_arguments('schedule', schedule)
    metric = given.pop('metric', Plateau.metric)
    return Plateau(metric, tuple(given.items()))


def scale_on_plateau(plateau: Plateau) -> optax.GradientTransformation:
    """Multiplies updates by the scale that the evaluations so far have led to."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: state.scale * u, updates), state

    return optax.GradientTransformation(plateau.reducer.init, update)


def scale(opt_state: Any) -> jax.Array | float:
    """What the rate is multiplied by: 1 where the schedule is another one."""
    found = [leaf.scale for leaf in _leaves(opt_state) if _is_state(leaf)]
    return found[0] if found else 1.0


def observe(
    state: TrainState,
    scores: Mapping[str, Any],
    cost: float,
    plateau: Plateau | None,
    mesh: Mesh,
) -> TrainState:
    """Tells the schedule of an evaluation; other schedules (None) leave the state as it is.

    Args:
      state: that was evaluated.
      scores: of the validation split.
      cost: what the run selects by, so that lower is better.
      plateau: the schedule's settings.
      mesh: of all devices.
    """
    if plateau is None:
        return state
    value = scores['loss'] if plateau.metric == 'loss' else cost
    placed = mesh_lib.put_replicated(np.float32(value), mesh)
    update = _compiled(plateau, mesh)
    opt_state = jax.tree.map(
        lambda leaf: update(leaf, placed) if _is_state(leaf) else leaf,
        state.opt_state,
        is_leaf=_is_state,
    )
    return dataclasses.replace(state, opt_state=opt_state)


@functools.cache
def _compiled(plateau: Plateau, mesh: Mesh) -> Any:
    def update(state: ReduceLROnPlateauState, value: jax.Array) -> ReduceLROnPlateauState:
        return plateau.reducer.update(jnp.zeros(()), state, value=value)[1]

    return jax.jit(update, out_shardings=mesh_lib.replicated(mesh))


def _leaves(opt_state: Any) -> list[Any]:
    return jax.tree.leaves(opt_state, is_leaf=_is_state)


def _is_state(node: Any) -> bool:
    return isinstance(node, ReduceLROnPlateauState)
