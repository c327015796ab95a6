"""Learning rate schedule that decays on a plateau of validation results: `schedule.name='plateau'`.

It uses optax's `reduce_on_plateau`, updated once per evaluation. Its state is part of the
optimizer's state and is saved and restored with it.
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
    """Settings of the plateau schedule.

    Attributes:
      metric: 'loss', or None for the metric that selects the best checkpoint.
      arguments: arguments of `optax.contrib.reduce_on_plateau` by name; arguments that are missing
        have optax's defaults.
    """

    metric: str | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, schedule: Mapping[str, Any]) -> 'Plateau':
        """Makes the settings from `config.schedule`."""
        given = own_arguments('schedule', schedule)
        metric = given.pop('metric', None)
        return cls(metric, tuple(given.items()))

    def transformation(self) -> optax.GradientTransformation:
        """Returns a transformation that multiplies updates by the schedule's current scale."""

        # Only apply the scale; `observe` updates the scale after an evaluation.
        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            return jax.tree.map(lambda u: state.scale * u, updates), state

        return optax.GradientTransformation(self._reducer.init, update)

    def scale(self, opt_state: Any) -> jax.Array:
        """Returns the current learning rate factor from the optimizer's state."""
        leaves = jax.tree.leaves(opt_state, is_leaf=_is_state)
        return next(leaf.scale for leaf in leaves if _is_state(leaf))

    def observe(
        self, state: TrainState, scores: Mapping[str, Any], cost: float, mesh: Mesh
    ) -> TrainState:
        """Updates the schedule with the result of an evaluation.

        Args:
          state: the evaluated state.
          scores: metrics of the validation split.
          cost: the selection metric as a cost, where lower is better.
          mesh: all devices.

        Returns:
          The state with the new state of the schedule in `opt_state`.
        """
        value = scores['loss'] if self.metric == 'loss' else cost
        placed = mesh_lib.put_replicated(np.float32(value), mesh)
        update = self._compiled(mesh)
        # Replace the schedule's state inside the optimizer's state.
        opt_state = jax.tree.map(
            lambda leaf: update(leaf, placed) if _is_state(leaf) else leaf,
            state.opt_state,
            is_leaf=_is_state,
        )
        return dataclasses.replace(state, opt_state=opt_state)

    @property
    def _reducer(self) -> optax.GradientTransformationExtraArgs:
        return optax.contrib.reduce_on_plateau(**dict(self.arguments))

    @functools.cache  # noqa: B019 - keeps the few instances alive
    def _compiled(self, mesh: Mesh) -> Any:
        def update(state: ReduceLROnPlateauState, value: jax.Array) -> ReduceLROnPlateauState:
            return self._reducer.update(jnp.zeros(()), state, value=value)[1]

        return jax.jit(update, out_shardings=mesh_lib.replicated(mesh))


def _is_state(node: Any) -> bool:
    return isinstance(node, ReduceLROnPlateauState)
