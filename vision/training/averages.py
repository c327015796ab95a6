"""The average of the parameters that is evaluated and predicted with, where a config asks for one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vision.core import durations

Pull = Callable[[jax.Array], jax.Array]


def is_averaged(config: ConfigDict) -> bool:
    """Whether a run with this config has an average."""
    return bool(config.training.ema_decay) or config.training.polyak_from is not None


def make_pull(config: ConfigDict) -> Pull | None:
    """Returns how far the average moves towards the parameters of step t: average += pull(t) · (p − average).

    `training.ema_decay` is an exponential average. It begins at the initial parameters, and so that
    they are soon forgotten, its decay is at most (1 + t) / (10 + t), as TensorFlow's
    `ExponentialMovingAverage` had it when Inception-v3 was trained.

    `training.polyak_from` is Polyak's: the plain mean of the parameters after every step from there
    on (Polyak and Juditsky 1992); until then it is the parameters themselves.

    BatchNorm's running statistics are averaged in the same way.

    Args:
      config: the whole config; `training.polyak_from` is in steps, as `setup` leaves it.

    Returns:
      A function of t, the steps done (≥ 1); None where there is no average.
    """
    if config.training.polyak_from is not None:
        start, unit = durations.parse(config.training.polyak_from, 'training.polyak_from')
        if unit != 'steps':
            raise ValueError(f'{config.training.polyak_from!r} is not in steps')
        return lambda t: 1.0 / jnp.maximum(t - start + 1, 1.0)
    decay = config.training.ema_decay
    if not decay:
        return None
    return lambda t: 1.0 - jnp.minimum(decay, (1.0 + t) / (10.0 + t))
