"""Learning rate schedules by name, and the moving average of the parameters.

A step is one update of the parameters, for any value of `training.accumulate`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from vision.core.config_keys import Range, check_arguments, declared, own_arguments
from vision.core.errors import UserError, unknown

ToSteps = Callable[[str, str], int]  # (duration, config key) -> steps
Fraction = Annotated[float, Range(low=0, high=1)]
Positive = Annotated[float, Range(above=0)]


def make_schedule(
    schedule: Mapping[str, Any], lr: float, total_steps: int, to_steps: ToSteps
) -> optax.Schedule:
    """Builds the learning rate as a function of the step.

    A linear warm-up from 0 to `lr` comes first, then the named schedule.

    Args:
      schedule: `config.schedule`: name, warm-up and the arguments of the named schedule.
      lr: learning rate after the warm-up.
      total_steps: length of the run.
      to_steps: converts a duration of the config to steps.

    Raises:
      UserError: an unknown schedule or argument, or a warm-up longer than the run.
    """
    name, args = schedule['name'], own_arguments('schedule', schedule)
    warmup = to_steps(schedule['warmup'], 'schedule.warmup')
    if warmup and warmup >= total_steps:
        raise UserError(
            f'schedule.warmup={schedule["warmup"]!r} is {warmup} steps, but the whole run has '
            f'{total_steps}: shorten it, or lengthen training.duration'
        )
    if name not in SCHEDULES:
        raise unknown('schedule.name', name, SCHEDULES)
    # The first three parameters of a schedule are fixed; the config may give the others.
    own = list(inspect.signature(SCHEDULES[name]).parameters)[3:]
    known = [*own, *declared('schedule')]
    check_arguments(f'schedule {name!r}', SCHEDULES[name], known, args)

    # Durations of the config count from the start of the run. The steps of a named schedule count
    # from the end of the warm-up.
    def after_warmup(text: str, key: str) -> int:
        return to_steps(text, key) - warmup

    main = SCHEDULES[name](lr, total_steps - warmup, after_warmup, **args)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), main], [warmup])


def peak_rate(lr: float, lr_for_batch: int | None, batch_size: int) -> float:
    """Returns the learning rate after the warm-up, scaled linearly with the batch size.

    The rate is `lr` · batch_size / lr_for_batch, or `lr` if `lr_for_batch` is None (Goyal et al.
    2017, section 2.1).
    """
    return lr if lr_for_batch is None else lr * batch_size / lr_for_batch


def _constant(lr: float, steps: int, to_steps: ToSteps) -> optax.Schedule:
    """A constant learning rate."""
    return optax.constant_schedule(lr)


def _cosine(lr: float, steps: int, to_steps: ToSteps, end: Fraction = 0.0) -> optax.Schedule:
    """Cosine decay from `lr` to `end` · `lr`.

    Args:
      end: final learning rate as a fraction of the peak.
    """
    return optax.cosine_decay_schedule(lr, steps, alpha=end)


def _linear(lr: float, steps: int, to_steps: ToSteps, end: Fraction = 0.0) -> optax.Schedule:
    """Linear decay from `lr` to `end` · `lr`.

    Args:
      end: final learning rate as a fraction of the peak.
    """
    return optax.linear_schedule(lr, lr * end, steps)


def _step(
    lr: float,
    steps: int,
    to_steps: ToSteps,
    at: tuple[str, ...] = (),
    factor: Annotated[float | tuple[float, ...], Range(above=0)] = 0.1,
) -> optax.Schedule:
    """Multiplies the learning rate by `factor` at each duration in `at`.

    Args:
      at: durations from the start of the run, in increasing order.
      factor: one factor for all durations, or one per duration as in LeNet-5's paper.
    """
    factors = list(factor) if isinstance(factor, tuple | list) else [factor] * len(at)
    if len(factors) != len(at):
        raise UserError(f'schedule.factor has {len(factors)} values for {len(at)} durations in at')
    # `to_steps` converts each duration to steps after the warm-up.
    boundaries = [to_steps(text, 'schedule.at') for text in at]
    if any(later <= sooner for sooner, later in zip([0, *boundaries], boundaries, strict=False)):
        raise UserError(f'schedule.at={tuple(at)!r} must be increasing and start after the warm-up')
    return optax.piecewise_constant_schedule(lr, dict(zip(boundaries, factors, strict=True)))


def _exponential(
    lr: float, steps: int, to_steps: ToSteps, every: str = '8 epochs', factor: Positive = 0.96
) -> optax.Schedule:
    """Multiplies the learning rate by `factor` after each period of length `every`.

    The rate is constant within a period. GoogLeNet decreases the learning rate by 4 % every 8
    epochs (section 6).

    Args:
      every: duration of a period, counted from the end of the warm-up.
      factor: ratio between successive periods.
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
    """Multiplies the learning rate by `factor` after `patience` evaluations without improvement.

    Evaluations are compared by `training.best_by`, or by the validation loss if `metric='loss'`.
    This schedule itself is constant: `vision.training.plateau` scales it with optax's
    `reduce_on_plateau`.

    Args:
      metric: 'loss', or None for the metric that selects the best checkpoint.
      factor: factor of each decay.
      patience: number of successive evaluations without improvement.
      cooldown: number of evaluations to ignore after a decay.
      rtol: relative improvement that counts.
      atol: absolute improvement that counts.
      min_scale: minimum learning rate as a fraction of the peak.
    """
    # Let optax check the arguments.
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
    """Moving average of the parameters and BatchNorm's running statistics; falsy if unused.

    Attributes:
      ema_decay: decay of an exponential moving average; 0 for none. The average starts at the
        initial parameters. To reduce their weight quickly, the decay at step t is at most
        (1 + t) / (10 + t), as in TensorFlow's `ExponentialMovingAverage`, with which Inception-v3
        was trained.
      polyak_from: first step of a Polyak average, the plain mean of the parameters after every step
        (Polyak and Juditsky 1992); before it, the average equals the parameters. None for none.
    """

    ema_decay: float = 0.0
    polyak_from: float | None = None

    def __bool__(self) -> bool:
        return bool(self.ema_decay) or self.polyak_from is not None

    def pull(self, t: jax.Array) -> jax.Array:
        """Returns the weight of step t ≥ 1: average += pull(t) · (parameters − average)."""
        # The mean of n values moves by 1 / n of the difference to the n-th value. Before
        # `polyak_from` the weight is 1, so the average equals the parameters.
        if self.polyak_from is not None:
            return 1.0 / jnp.maximum(t - self.polyak_from + 1, 1.0)
        return 1.0 - jnp.minimum(self.ema_decay, (1.0 + t) / (10.0 + t))
