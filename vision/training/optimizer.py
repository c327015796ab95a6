"""Optimizers and schedules: optax's, by name and arguments in the config."""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from vision.core.errors import UserError, unknown
from vision.models.pretrained import is_head

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: getattr(optax, name)
    for name in (
        'sgd', 'rmsprop', 'adam', 'adamw', 'nadam', 'nadamw', 'adagrad', 'adabelief', 'lamb', 'lars',
        'lion', 'novograd', 'radam', 'yogi',
    )
}  # fmt: skip

ToSteps = Callable[[str, str], int]  # a duration and its key in the config, to steps


def make_schedule(config: ConfigDict, total_steps: int, to_steps: ToSteps) -> optax.Schedule:
    """Builds the learning rate as a function of the step.

    Args:
      config: the whole config; `optimizer.lr` is the rate after the warm-up.
      total_steps: of the run.
      to_steps: turns a duration of the config into steps.

    Raises:
      UserError: an unknown schedule or argument, or a warm-up longer than the run.
    """
    args = dict(config.schedule)
    name, warmup = args.pop('name'), to_steps(args.pop('warmup', '0 steps'), 'schedule.warmup')
    if warmup >= total_steps:
        raise UserError(
            f'schedule.warmup={config.schedule.warmup!r} is {warmup} steps; '
            f'the whole run has {total_steps}'
        )
    if name not in SCHEDULES:
        raise unknown('schedule.name', name, SCHEDULES)
    own = list(inspect.signature(SCHEDULES[name]).parameters)[3:]
    for key in args:
        if key not in own:
            raise unknown(f'argument of schedule {name!r}', key, own)
    lr = config.optimizer.lr
    main = SCHEDULES[name](lr, total_steps - warmup, _shifted(to_steps, warmup), **args)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), main], [warmup])


def _shifted(to_steps: ToSteps, warmup: int) -> ToSteps:
    """Durations of a schedule count from the run's start; the part behind a warm-up starts later."""
    return lambda text, key: max(to_steps(text, key) - warmup, 0)


def _constant(lr: float, steps: int, to_steps: ToSteps) -> optax.Schedule:
    return optax.constant_schedule(lr)


def _cosine(lr: float, steps: int, to_steps: ToSteps, end: float = 0.0) -> optax.Schedule:
    """Half a cosine from `lr` to `end` (a fraction of it)."""
    return optax.cosine_decay_schedule(lr, steps, alpha=end)


def _linear(lr: float, steps: int, to_steps: ToSteps, end: float = 0.0) -> optax.Schedule:
    return optax.linear_schedule(lr, lr * end, steps)


def _step(
    lr: float, steps: int, to_steps: ToSteps, at: tuple[str, ...] = (), factor: float = 0.1
) -> optax.Schedule:
    """Times `factor` at each of the durations `at`."""
    boundaries = {to_steps(text, 'schedule.at'): factor for text in at}
    return optax.piecewise_constant_schedule(lr, boundaries)


def _exponential(
    lr: float, steps: int, to_steps: ToSteps, every: str = '8 epochs', factor: float = 0.96
) -> optax.Schedule:
    """Times `factor` each `every`, in stairs (GoogLeNet: 4 % down each 8 epochs)."""
    return optax.exponential_decay(lr, to_steps(every, 'schedule.every'), factor, staircase=True)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    'constant': _constant,
    'cosine': _cosine,
    'linear': _linear,
    'step': _step,
    'exponential': _exponential,
}


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Builds the optimizer: L2 weight decay in the gradient, on kernels only, then optax's own.

    Args:
      config: the whole config; `optimizer` has the name, `lr` and the arguments of optax's function,
        `freeze` and `lr_factors` say which parameters have another rate, or none.
      schedule: the learning rate by step.

    Raises:
      UserError: an unknown optimizer or argument, or a pattern that is no regular expression.
    """
    args = dict(config.optimizer)
    name = args.pop('name')
    args.pop('lr')
    if name not in OPTIMIZERS:
        raise unknown('optimizer.name', name, OPTIMIZERS)
    known = set(inspect.signature(OPTIMIZERS[name]).parameters) - {'learning_rate'} | {'lr'}
    for key in args:
        if key not in known:
            raise unknown(f'argument of optimizer {name!r}', key, known)

    def at(factor: float) -> optax.GradientTransformation:
        if factor == 0:
            return optax.set_to_zero()
        optimizer = OPTIMIZERS[name](lambda step: factor * schedule(step), **args)
        if not config.weight_decay:
            return optimizer
        return optax.chain(optax.add_decayed_weights(config.weight_decay, mask=kernels), optimizer)

    factors = [(config.freeze, 0.0)] if config.freeze else []
    factors += list(config.lr_factors.items())
    for pattern, factor in factors:
        _check_factor(pattern, factor)
    if not factors:
        return at(1.0)

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: str(_factor(factors, path)), params)

    return optax.multi_transform({str(f): at(f) for f in {1.0, *(f for _, f in factors)}}, labels)


def kernels(params: Any) -> Any:
    """True for what weight decay acts on: leaves named `kernel`, not biases and norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def _factor(factors: list[tuple[str, float]], path: tuple) -> float:
    """The factor of a parameter's rate: of the first pattern that fits it, else 1."""
    names = tuple(key.key for key in path)
    for pattern, factor in factors:
        backbone = pattern == 'backbone'
        if not is_head(names) if backbone else re.search(pattern, '/'.join(names)):
            return factor
    return 1.0


def _check_factor(pattern: str, factor: float) -> None:
    try:
        re.compile(pattern)
    except re.error as e:
        raise UserError(f'{pattern!r} is no regular expression: {e}') from None
    if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
        raise UserError(f'lr_factors: {factor!r} of {pattern!r} must be a number, 0 or more')
