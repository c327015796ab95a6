"""The average of the parameters that is evaluated and predicted with, where a config asks for one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vision.core import durations


@dataclasses.dataclass(frozen=True)
class Averaging:
    """An exponential or uniform average of the parameters; false if there is none.

    `ema_decay` is that of an exponential average. It begins at the initial parameters, and so that they are
    soon forgotten, its decay is at most (1 + t) / (10 + t), as TensorFlow's `ExponentialMovingAverage` had
    it when Inception-v3 was trained.

    `polyak_from` is the step from which on it is Polyak's: the plain mean of the parameters after every
    step (Polyak and Juditsky 1992); until then it is the parameters themselves.

    BatchNorm's running statistics are averaged in the same way.
    """

    ema_decay: float = 0.0
    polyak_from: float | None = None

    def __bool__(self) -> bool:
        return bool(self.ema_decay) or self.polyak_from is not None

    def pull(self, t: jax.Array) -> jax.Array:
        """The share of the way to the parameters of step t ≥ 1: average += pull(t) · (parameters − average)."""
        if self.polyak_from is not None:
            return 1.0 / jnp.maximum(t - self.polyak_from + 1, 1.0)
        return 1.0 - jnp.minimum(self.ema_decay, (1.0 + t) / (10.0 + t))


def make_averaging(training: Mapping[str, Any]) -> Averaging:
    """Reads `ema_decay` and `polyak_from` of `config.training`, the second in steps, as `setup` leaves it."""
    start = training['polyak_from']
    if start is None:
        return Averaging(training['ema_decay'])
    count, unit = durations.parse(start, 'training.polyak_from')
    if unit != 'steps':
        raise ValueError(f'{start!r} is not in steps')
    return Averaging(polyak_from=count)
