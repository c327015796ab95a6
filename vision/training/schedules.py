"""Schedules: the learning rate by step, by name and arguments in the config; and the average of the parameters by step.

A step is one update, whatever `training.accumulate` is.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from vision.core.config_keys import Range, check_arguments, own_arguments
from vision.core.errors import UserError, unknown

ToSteps = Callable[[str, str], int]  # a duration and its key in the config, to steps
Fraction = Annotated[float, Range(low=0, high=1)]
Positive = Annotated[float, Range(above=0)]


def make_schedule(
    schedule: Mapping[str, Any], lr: float, total_steps: int, to_steps: ToSteps
) -> optax.Schedule:
    """Builds the learning rate as a function of the step.

    A warm-up goes from 0 to `lr` in a straight line, and any schedule follows.

    Args:
      schedule: `config.schedule`: name, warm-up and the arguments of what is named.
      lr: the rate after the warm-up.
      total_steps: of the run.
      to_steps: turns a duration of the config into steps.

    Raises:
      UserError: an unknown schedule or argument, or a warm-up longer than the run.
    """
    name, args = schedule['name'], own_arguments('schedule', schedule)
    warmup = to_steps(schedule['warmup'], 'schedule.warmup')
    if warmup and warmup >= total_steps:
        raise UserError(
            f'schedule.warmup={schedule["warmup"]!r} is {warmup} steps; '
            f'the whole run has {total_steps}: shorten it, or lengthen training.duration'
        )
    if name not in SCHEDULES:
        raise unknown('schedule.name', name, SCHEDULES)
    own = list(inspect.signature(SCHEDULES[name]).parameters)[3:]
    check_arguments(f'schedule {name!r}', SCHEDULES[name], own, args)

    def after_warmup(text: str, key: str) -> int:
        return to_steps(text, key) - warmup

    main = SCHEDULES[name](lr, total_steps - warmup, after_warmup, **args)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), main], [warmup])


def peak_rate(lr: float, lr_for_batch: int | None, batch_size: int) -> float:
    """The rate after the warm-up: `lr`, times the batch over the one that `lr` is for, if it is given.

    Goyal et al. 2017, section 2.1: when the batch is k times as large, the rate is, too.
    """
    return lr if lr_for_batch is None else lr * batch_size / lr_for_batch


def _constant(lr: float, steps: int, to_steps: ToSteps) -> optax.Schedule:
    return optax.constant_schedule(lr)


def _cosine(lr: float, steps: int, to_steps: ToSteps, end: Fraction = 0.0) -> optax.Schedule:
    """Half a cosine from `lr` to `end`.

    Args:
      end: the last rate, as a fraction of the first.
    """
    return optax.cosine_decay_schedule(lr, steps, alpha=end)


def _linear(lr: float, steps: int, to_steps: ToSteps, end: Fraction = 0.0) -> optax.Schedule:
    """A straight line from `lr` to `end`.

    Args:
      end: the last rate, as a fraction of the first.
    """
    return optax.linear_schedule(lr, lr * end, steps)


def _step(
    lr: float,
    steps: int,
    to_steps: ToSteps,
    at: tuple[str, ...] = (),
    factor: Annotated[float | tuple[float, ...], Range(above=0)] = 0.1,
) -> optax.Schedule:
    """Times `factor` at each of the durations `at`.

    Args:
      at: durations from the run's start.
      factor: one for all, or one for each duration, as in LeNet-5's paper and ResNet-110's first epoch.
    """
    factors = list(factor) if isinstance(factor, tuple | list) else [factor] * len(at)
    if len(factors) != len(at):
        raise UserError(f'schedule.factor has {len(factors)} values for {len(at)} durations in at')
    boundaries = [to_steps(text, 'schedule.at') for text in at]
    if any(later <= sooner for sooner, later in zip([0, *boundaries], boundaries, strict=False)):
        raise UserError(f'schedule.at={tuple(at)!r} must rise, and begin after the warm-up')
    return optax.piecewise_constant_schedule(lr, dict(zip(boundaries, factors, strict=True)))


def _exponential(
    lr: float, steps: int, to_steps: ToSteps, every: str = '8 epochs', factor: Positive = 0.96
) -> optax.Schedule:
    """Times `factor` each `every` after the warm-up, in stairs (GoogLeNet: 4 % each 8 epochs).

    Args:
      every: the length of a stair, a duration.
      factor: from stair to stair.
    """
    period = to_steps(every, 'schedule.every') - to_steps('0 steps', 'schedule.every')
    if period < 1:
        raise UserError(f'schedule.every={every!r} must be above 0')
    return optax.exponential_decay(lr, period, factor, staircase=True)


def _plateau(
    lr: float,
    steps: int,
    to_steps: ToSteps,
    metric: Literal['loss'] | None = None,
    factor: float = 0.1,
    patience: Annotated[int, Range(low=1)] = 10,
    cooldown: Annotated[int, Range(low=0)] = 0,
    rtol: float = 1e-4,
    atol: float = 0.0,
    min_scale: Fraction = 0.0,
) -> optax.Schedule:
    """Times `factor` when `patience` evaluations in a row were no better than the best one before.

    Better by `training.best_by`, or with `metric='loss'` by the validation loss.

    The rate itself is constant: `vision.training.plateau` scales it (optax's `reduce_on_plateau`).

    Args:
      metric: of the validation split.
      factor: that the rate is multiplied by.
      patience: evaluations in a row without a better value.
      cooldown: evaluations after a fall that are not counted.
      rtol: relative change that counts as better.
      atol: absolute change that counts as better.
      min_scale: fraction of the first rate that it does not fall below.
    """
    try:
        optax.contrib.reduce_on_plateau(factor, patience, rtol, atol, cooldown, 1, min_scale)
    except ValueError as e:
        raise UserError(f"schedule 'plateau': {e}") from None
    return optax.constant_schedule(lr)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    'constant': _constant,
    'cosine': _cosine,
    'linear': _linear,
    'step': _step,
    'exponential': _exponential,
    'plateau': _plateau,
}


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
