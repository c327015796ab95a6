"""Optimizers: optax's, by name and arguments in the config, and what goes before and behind them."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict
from optax import contrib

from vision.core.config import default_config
from vision.core.errors import UserError, unknown
from vision.training import patterns, plateau

# All of optax's that need no more than gradient, parameters, rate and loss. Not here: lbfgs and
# sophia (they evaluate the loss again), rprop (its rate is no schedule), polyak_sgd (it finds its
# own), schedule_free (it is evaluated with parameters of its own), dpsgd (gradients per example).
_OPTAX = (
    'adabelief', 'adadelta', 'adafactor', 'adagrad', 'adam', 'adamax', 'adamaxw', 'adamw', 'adan',
    'amsgrad', 'fromage', 'lamb', 'lars', 'lion', 'nadam', 'nadamw', 'noisy_sgd', 'novograd',
    'optimistic_adam_v2', 'optimistic_gradient_descent', 'radam', 'rmsprop', 'sgd', 'sign_sgd',
    'signum', 'sm3', 'yogi',
)  # fmt: skip
_CONTRIB = (
    'acprop', 'ademamix', 'adopt', 'cocob', 'dadapt_adamw', 'dog', 'dowg', 'galore', 'madgrad',
    'momo', 'momo_adam', 'muon', 'prodigy', 'simplified_ademamix',
)  # fmt: skip
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    **{name: getattr(optax, name) for name in _OPTAX},
    **{name: getattr(contrib, name) for name in _CONTRIB},
}

# Keys of config.optimizer that are no arguments of optax's function.
_COMMON = ('name', 'lr', 'lr_for_batch', 'clip_norm', 'clip_value', 'weight_decay')
# Arguments that only have a meaning in a range: lowest value, and what it must be below.
_RANGES = {
    **dict.fromkeys(('momentum', 'decay', 'b1', 'b2', 'b3', 'beta'), (0, 1)),
    **dict.fromkeys(('eps', 'eps_root', 'weight_decay', 'trust_coefficient'), (0, float('inf'))),
}
# Arguments that are set here and nowhere else.
_OWN = (
    'learning_rate', 'mask', 'weight_decay_mask', 'weight_decay_rate', 'adam_weight_decay', 'key', 'seed',
)  # fmt: skip
DECAY_FORMS = ('default', 'l2', 'decoupled')


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Builds what turns a gradient into the change of the parameters.

    In this order: clipping (each value, then the norm of the whole gradient), L2 weight decay,
    optax's optimizer, decoupled weight decay, the factors of `lr_factors`, the plateau's scale. What
    is frozen has no gradient, counts in no norm and has no state.

    Weight decay acts on the parameters that `weight_decay_pattern` names and is
    - 'l2': added to the gradient, w · parameter, before all else (the papers');
    - 'decoupled': added to the change, −rate · w · parameter (Loshchilov and Hutter 2019: SGDW, AdamW);
    - 'default': the optimizer's own where it has one (adamw, lion: decoupled; lamb: within the trust
      ratio; lars: in the gradient), else 'l2'.

    `update` takes `value`, the loss, which a few optimizers read.

    Args:
      config: the whole config; `optimizer` has the name, `lr` and the arguments of optax's function,
        `freeze` and `lr_factors` say which parameters have another rate, or none.
      schedule: the learning rate by step.

    Raises:
      UserError: an unknown optimizer or argument, a value that makes no sense, a pattern that is no
        regular expression, weight decay given twice.
    """
    patterns.check(config)
    name = config.optimizer.name
    if name not in OPTIMIZERS:
        raise unknown('optimizer.name', name, OPTIMIZERS)
    decay, form = _decay(config)
    arguments, own = _arguments(config), _own_decay(name)
    in_place = form == 'default' and own is not None
    if own:  # its own default need not be 0
        arguments |= {own[0]: decay if in_place else 0.0, own[1]: _decayed(config)}
    if 'key' in inspect.signature(OPTIMIZERS[name]).parameters:
        arguments['key'] = config.seed
    try:
        optimizer = _with_schedule(name, schedule, arguments)
    except (TypeError, ValueError) as e:
        raise UserError(f'optimizer {name!r}: {e}') from None
    parts = _clipping(config)
    if decay and not in_place and form != 'decoupled':
        parts.append(optax.add_decayed_weights(decay, _decayed(config)))
    parts.append(optimizer)
    if decay and form == 'decoupled':
        parts.append(
            optax.add_decayed_weights(lambda step: -decay * schedule(step), _decayed(config))
        )
    if config.lr_factors:
        parts.append(_scale_rates(config))
    if plateau.is_plateau(config.schedule):
        parts.append(plateau.scale_on_plateau(config.schedule))

    def labels(params: Any) -> Any:
        factors = patterns.lr_factors(config, params)
        return jax.tree.map(lambda factor: 'trained' if factor else 'frozen', factors)

    whole = optax.chain(*parts)
    if config.freeze or config.lr_factors:
        whole = optax.partition({'trained': whole, 'frozen': optax.set_to_zero()}, labels)
    return optax.with_extra_args_support(whole)


def check(config: ConfigDict, optimizer: optax.GradientTransformation, params: Any) -> None:
    """Tries the optimizer on the shapes of a model's parameters; computes nothing.

    Raises:
      UserError: it cannot have the arguments that it was given.
    """

    def update(params: Any) -> Any:
        state = optimizer.init(params)
        return optimizer.update(params, state, params, value=jax.numpy.zeros(()))

    try:
        jax.eval_shape(update, params)
    except (TypeError, ValueError, AttributeError, AssertionError) as e:
        line = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        given = ', '.join(f'{k}={v!r}' for k, v in _arguments(config).items())
        raise UserError(
            f'optimizer {config.optimizer.name!r} cannot have {given}: {line}'
        ) from None


def _arguments(config: ConfigDict) -> dict[str, Any]:
    """The arguments of optax's function that the config gives, checked; without weight decay."""
    name = config.optimizer.name
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    known = [key for key in parameters if key not in _OWN]
    default, arguments = default_config().optimizer, {}
    for key, value in config.optimizer.items():
        if key in _COMMON:
            continue
        if key in known:
            _check_argument(name, key, value, parameters[key].default)
            arguments[key] = value
        # The default config's momentum is sgd's: it is no mistake of whoever names another optimizer.
        elif key not in default or value != default[key]:
            raise unknown(f'argument of optimizer {name!r}', key, {*known, *_COMMON})
    return arguments


def _check_argument(name: str, key: str, value: Any, default: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f'optimizer {name!r}: {key}={value!r} must be True or False')
    if key in _RANGES and not (value is None and default is None):
        low, high = _RANGES[key]
        if not number or not low <= value < high:
            raise UserError(f'optimizer {name!r}: {key}={value!r} must be in [{low}, {high})')
    elif isinstance(default, int | float) and not isinstance(default, bool) and not number:
        raise UserError(f'optimizer {name!r}: {key}={value!r} must be a number')


def _with_schedule(
    name: str, schedule: optax.Schedule, arguments: dict[str, Any]
) -> optax.GradientTransformation:
    if name == 'sm3':  # takes a number for a rate; it multiplies by it last
        return optax.chain(optax.sm3(1.0, **arguments), optax.scale_by_schedule(schedule))
    return OPTIMIZERS[name](learning_rate=schedule, **arguments)


def _decay(config: ConfigDict) -> tuple[float, str]:
    """The weight decay and its form, wherever the config has them."""
    form, own = config.weight_decay_form, config.optimizer.get('weight_decay')
    if form not in DECAY_FORMS:
        raise unknown('weight_decay_form', form, DECAY_FORMS)
    if own is None:
        return config.weight_decay, form
    name = config.optimizer.name
    _check_argument(name, 'weight_decay', own, 0.0)
    if config.weight_decay:
        raise UserError(
            f'weight decay is given twice: weight_decay={config.weight_decay} and '
            f'optimizer.weight_decay={own}; keep the first'
        )
    if form != 'default' or _own_decay(name) is None:
        raise UserError(f'optimizer {name!r}: write weight_decay={own}, not optimizer.weight_decay')
    return own, form


def _own_decay(name: str) -> tuple[str, str] | None:
    """The arguments for weight decay and its mask of an optimizer that has both."""
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    if name == 'muon':  # its own reaches matrices only
        return None
    for decay, mask in (
        ('weight_decay', 'mask'),
        ('weight_decay', 'weight_decay_mask'),
        ('weight_decay_rate', 'weight_decay_mask'),
    ):
        if decay in parameters and mask in parameters:
            return decay, mask
    return None


def _decayed(config: ConfigDict) -> Callable[[Any], Any]:
    """The mask of what weight decay acts on."""
    return lambda params: patterns.matches(config.weight_decay_pattern, params)


def _clipping(config: ConfigDict) -> list[optax.GradientTransformation]:
    value, norm = config.optimizer.get('clip_value'), config.optimizer.get('clip_norm')
    parts = [] if value is None else [optax.clip(value)]
    return parts if norm is None else [*parts, optax.clip_by_global_norm(norm)]


def _scale_rates(config: ConfigDict) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, f: u * f, updates, patterns.lr_factors(config, params))

    return optax.stateless(scale)
