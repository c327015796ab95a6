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

    @classmethod
    def of(cls, schedule: Mapping[str, Any]) -> 'Plateau':
        """Reads `config.schedule`."""
        given = own_arguments('schedule', schedule)
        metric = given.pop('metric', None)
        return cls(metric, tuple(given.items()))

    def transformation(self) -> optax.GradientTransformation:
        """Multiplies updates by the scale that the evaluations so far have led to."""

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            return jax.tree.map(lambda u: state.scale * u, updates), state

        return optax.GradientTransformation(self._reducer.init, update)

    def scale(self, opt_state: Any) -> jax.Array:
        """The factor of the rate in a state of the optimizer."""
        leaves = jax.tree.leaves(opt_state, is_leaf=_is_state)
        return next(leaf.scale for leaf in leaves if _is_state(leaf))

    def observe(
        self, state: TrainState, scores: Mapping[str, Any], cost: float, mesh: Mesh
    ) -> TrainState:
        """Tells the schedule of an evaluation.

        Args:
          state: that was evaluated.
          scores: of the validation split.
          cost: what the run selects by, so that lower is better.
          mesh: of all devices.
        """
        value = scores['loss'] if self.metric == 'loss' else cost
        placed = mesh_lib.put_replicated(np.float32(value), mesh)
        update = self._compiled(mesh)
        opt_state = jax.tree.map(
            lambda leaf: update(leaf, placed) if _is_state(leaf) else leaf,
            state.opt_state,
            is_leaf=_is_state,
        )
        return dataclasses.replace(state, opt_state=opt_state)

    @property
    def _reducer(self) -> optax.GradientTransformationExtraArgs:
        return optax.contrib.reduce_on_plateau(**dict(self.arguments))

    @functools.cache  # noqa: B019 - of settings, which are few
    def _compiled(self, mesh: Mesh) -> Any:
        def update(state: ReduceLROnPlateauState, value: jax.Array) -> ReduceLROnPlateauState:
            return self._reducer.update(jnp.zeros(()), state, value=value)[1]

        return jax.jit(update, out_shardings=mesh_lib.replicated(mesh))


def _is_state(node: Any) -> bool:
    return isinstance(node, ReduceLROnPlateauState)
