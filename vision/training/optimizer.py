"""Optimizers of optax by name, with weight decay, learning rate factors and frozen parameters.

A parameter filter is a pattern: a regular expression that is searched for in the parameter's path
('layer1_0/conv1/kernel'), or the word 'backbone', which matches all parameters except those of the
classifier and the auxiliary heads.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax import contrib

from vision.core.config_keys import SGD, Range, declared, own_arguments
from vision.core.errors import UserError, unknown
from vision.models.base import is_head

if TYPE_CHECKING:
    from vision.training.plateau import Plateau

# The optax optimizers that need only the gradient, the parameters, the learning rate and the loss.
# These are left out: lbfgs and sophia, which evaluate the loss again; rprop, which takes no
# schedule; polyak_sgd, which has its own schedule; schedule_free, which evaluates other parameters
# than it trains; and dpsgd, which needs per-example gradients.
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


def lamb_masked(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    mask: Any = True,
) -> optax.GradientTransformation:
    """LAMB with a trust ratio only for the parameters that have weight decay.

    You et al. 2020, algorithm 2, as in the authors' code, apex (`FusedLAMB`) and timm: norms and
    biases get Adam's update. optax's `lamb` multiplies their updates by the trust ratio, too. apex
    and timm also clip the gradient's global norm at 1 (`optimizer.clip_norm`).
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(learning_rate),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    **{name: getattr(optax, name) for name in _OPTAX},
    **{name: getattr(contrib, name) for name in _CONTRIB},
    'lamb_masked': lamb_masked,
}

# Valid ranges of arguments by name.
_RANGES = {
    **dict.fromkeys(('momentum', 'decay', 'b1', 'b2', 'b3', 'beta'), Range(low=0, below=1)),
    **dict.fromkeys(('eps', 'eps_root', 'weight_decay', 'trust_coefficient'), Range(low=0)),
}
# Arguments that this module sets and a config must not give.
OWN_ARGUMENTS = (
    'learning_rate', 'mask', 'weight_decay_mask', 'weight_decay_rate', 'adam_weight_decay', 'key', 'seed',
)  # fmt: skip


BACKBONE = 'backbone'


def matches(pattern: str, params: Any) -> Any:
    """Returns a PyTree like `params`: True for the parameters that the pattern matches."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(pattern, path), params)


@dataclasses.dataclass(frozen=True)
class RateFactors:
    """Learning rate factors by parameter; falsy if all are 1.

    Attributes:
      freeze: pattern of the frozen parameters, whose factor is 0; or None.
      lr_factors: pairs of a pattern and a factor. The first pattern that matches applies.
      layers: pairs of a top-level module and a further factor (`layer_factors`).
    """

    freeze: str | None = None
    lr_factors: tuple[tuple[str, float], ...] = ()
    layers: tuple[tuple[str, float], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.freeze or self.lr_factors or self.layers)

    def of(self, params: Any) -> Any:
        """Returns a PyTree like `params`: the learning rate factor of each parameter."""
        factors = [(self.freeze, 0.0)] if self.freeze else []
        factors += self.lr_factors
        layers = dict(self.layers)

        def factor_of(path: tuple) -> float:
            first = next((factor for pattern, factor in factors if _names(pattern, path)), 1.0)
            return first * layers.get(_path(path)[0], 1.0)

        return jax.tree_util.tree_map_with_path(lambda path, _: factor_of(path), params)

    def keep_frozen(self, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        """Returns the new `params` and `batch_stats` with the old values for everything frozen.

        A layer's running statistics are frozen if all parameters of the layer are frozen. For a
        layer without parameters, the parameters of the enclosing module are used instead.
        """
        if not self:
            return new
        factors = flatten_dict(self.of(new['params']))

        # Walk up from the layer to the first module that has parameters.
        def is_frozen(path: tuple[str, ...]) -> bool:
            while path:
                inside = [factor for name, factor in factors.items() if name[: len(path)] == path]
                if inside:
                    return not any(inside)
                path = path[:-1]
            return False

        # Look up a parameter by its path, and a running statistic by the path of its layer.
        kept = {
            kind: {
                path: value
                if not is_frozen(path if kind == 'params' else path[:-1])
                else flatten_dict(old[kind])[path]
                for path, value in flatten_dict(tree).items()
            }
            for kind, tree in new.items()
        }
        return {kind: unflatten_dict(values) for kind, values in kept.items()}

    def check(self, params: Any) -> None:
        """Checks the patterns against a model's parameters, or their shapes.

        Raises:
          UserError: a pattern matches no parameter, or every parameter is frozen.
        """
        if self.freeze:
            check_pattern('freeze', self.freeze, params)
        for pattern, _ in self.lr_factors:
            check_pattern('lr_factors', pattern, params)
        if not any(jax.tree.leaves(self.of(params))):
            raise UserError('freeze and lr_factors leave no parameter to train')


def check_pattern(key: str, pattern: str, params: Any) -> None:
    """Raises UserError, naming the config key, if a pattern matches no parameter of the model."""
    if not any(jax.tree.leaves(matches(pattern, params))):
        names = ['/'.join(_path(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        some = ', '.join(names[:3])
        raise UserError(f'{key}: {pattern!r} matches no parameter of the model ({some}, …)')


def _names(pattern: str, path: tuple) -> bool:
    """Returns True if the pattern matches the parameter at a JAX key path."""
    if pattern == BACKBONE:
        return not is_head(_path(path))
    return re.search(pattern, '/'.join(_path(path))) is not None


def _path(path: tuple) -> tuple[str, ...]:
    return tuple(key.key for key in path)


@dataclasses.dataclass(frozen=True)
class WeightDecay:
    """Weight decay of the parameters that a pattern matches.

    Attributes:
      rate: decay rate; 0 for none.
      pattern: parameter filter.
      form: how the decay is applied:
        - 'l2': rate · parameter is added to the gradient before the optimizer, as in the papers;
        - 'decoupled': −learning rate · rate · parameter is added to the update (Loshchilov and
          Hutter 2019: SGDW, AdamW);
        - 'default': the optimizer's own weight decay if it has one (adamw and lion: decoupled;
          lamb: within the trust ratio; lars: in the gradient), else 'l2'.
    """

    rate: float
    pattern: str
    form: str

    def mask(self, params: Any) -> Any:
        """Returns a PyTree like `params`: True for the decayed parameters."""
        return matches(self.pattern, params)


def make_optimizer(
    optimizer: Mapping[str, Any],
    schedule: optax.Schedule,
    decay: WeightDecay,
    rates: RateFactors,
    plateau: 'Plateau | None',
    seed: int,
) -> optax.GradientTransformation:
    """Builds the gradient transformation of the training step.

    It chains, in this order: clipping of each value, clipping of the global norm, L2 weight decay,
    the optax optimizer, decoupled weight decay, learning rate factors, and the plateau's scale.
    Frozen parameters have no gradient, do not count in any norm, and have no optimizer state.

    The transformation's `update` takes the loss as `value`, which a few optimizers read.

    Args:
      optimizer: `config.optimizer`: name, clipping and the arguments of the optax function.
      schedule: learning rate as a function of the step.
      decay: weight decay. If the named optimizer has an argument for weight decay, `optimizer` may
        give the rate instead.
      rates: learning rate factors by parameter.
      plateau: settings of the plateau schedule, or None.
      seed: seed for optimizers that draw random numbers.

    Raises:
      UserError: an unknown optimizer or argument, an invalid value, or weight decay given twice.
    """
    name = optimizer['name']
    if name not in OPTIMIZERS:
        raise unknown('optimizer.name', name, OPTIMIZERS)
    # Collect the arguments of the optax function, with its own weight decay if it has one.
    decay = _given_once(optimizer, decay)
    arguments, own = _arguments(optimizer), _own_decay(name)
    in_place = decay.form == 'default' and own is not None
    if own:  # always set, since optax's default may not be 0
        arguments |= {own[0]: decay.rate if in_place else 0.0, own[1]: decay.mask}
    if 'key' in inspect.signature(OPTIMIZERS[name]).parameters:
        arguments['key'] = seed
    try:
        core = _with_schedule(name, schedule, arguments)
    except (TypeError, ValueError) as e:
        raise UserError(f'optimizer {name!r}: {e}') from None

    # Chain the transformations in the documented order.
    parts = []
    if optimizer.get('clip_value') is not None:
        parts.append(optax.clip(optimizer['clip_value']))
    if optimizer.get('clip_norm') is not None:
        parts.append(optax.clip_by_global_norm(optimizer['clip_norm']))
    if decay.rate and not in_place and decay.form != 'decoupled':
        parts.append(optax.add_decayed_weights(decay.rate, decay.mask))
    parts.append(core)
    if decay.rate and decay.form == 'decoupled':
        parts.append(
            optax.add_decayed_weights(lambda step: -decay.rate * schedule(step), decay.mask)
        )
    if rates.lr_factors or rates.layers:
        parts.append(_scale_rates(rates))
    if plateau is not None:
        parts.append(plateau.transformation())

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda factor: 'trained' if factor else 'frozen', rates.of(params))

    # Frozen parameters bypass the whole chain.
    whole = optax.chain(*parts)
    if rates:
        whole = optax.partition({'trained': whole, 'frozen': optax.set_to_zero()}, labels)
    return optax.with_extra_args_support(whole)


def check_optimizer(
    optimizer: Mapping[str, Any], built: optax.GradientTransformation, params: Any
) -> None:
    """Traces an optimizer on the shapes of a model's parameters, to check its arguments.

    Args:
      optimizer: `config.optimizer`.
      built: the result of `make_optimizer`.
      params: parameters, or their shapes.

    Raises:
      UserError: the optimizer fails with its arguments.
    """

    def update(params: Any) -> Any:
        state = built.init(params)
        return built.update(params, state, params, value=jnp.zeros(()))

    try:
        jax.eval_shape(update, params)
    except (TypeError, ValueError, AttributeError, AssertionError) as e:
        # Report the first line of optax's own error.
        line = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        given = ', '.join(f'{k}={v!r}' for k, v in _arguments(optimizer).items())
        raise UserError(f'optimizer {optimizer["name"]!r} cannot have {given}: {line}') from None


def _arguments(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the checked arguments for the optax function, without weight decay."""
    name = optimizer['name']
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    known, arguments = argument_names(name), {}
    for key, value in own_arguments('optimizer', optimizer).items():
        if key == 'weight_decay':
            continue
        # Unknown arguments are errors, except those of the default config.
        if key in known:
            _check_argument(name, key, value, parameters[key].default)
            arguments[key] = value
        # The default config has sgd's momentum; ignore the momentum if another optimizer is named.
        elif key not in SGD or value != SGD[key]:
            names = {*known, *declared('optimizer'), 'weight_decay'}
            raise unknown(f'argument of optimizer {name!r}', key, names)
    return arguments


def argument_names(name: str) -> list[str]:
    """Returns the arguments of an optimizer that a config may give."""
    return [
        key for key in inspect.signature(OPTIMIZERS[name]).parameters if key not in OWN_ARGUMENTS
    ]


def _check_argument(name: str, key: str, value: Any, default: Any) -> None:
    """Raises UserError if a value has the wrong type or lies outside of its range."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f'optimizer {name!r}: {key}={value!r} must be True or False')
    if key in _RANGES and not (value is None and default is None):
        if not number or not _RANGES[key].holds(value):
            raise UserError(f'optimizer {name!r}: {key}={value!r} must be {_RANGES[key]}')
    elif isinstance(default, int | float) and not isinstance(default, bool) and not number:
        raise UserError(f'optimizer {name!r}: {key}={value!r} must be a number')


def _with_schedule(
    name: str, schedule: optax.Schedule, arguments: dict[str, Any]
) -> optax.GradientTransformation:
    """Builds the optax optimizer with the schedule as its learning rate."""
    if name == 'sm3':  # takes only a number as learning rate: apply the schedule last
        return optax.chain(optax.sm3(1.0, **arguments), optax.scale_by_schedule(schedule))
    return OPTIMIZERS[name](learning_rate=schedule, **arguments)


def _given_once(optimizer: Mapping[str, Any], decay: WeightDecay) -> WeightDecay:
    """Returns the weight decay with its rate from `weight_decay` or `optimizer.weight_decay`."""
    name, rate = optimizer['name'], optimizer.get('weight_decay')
    if rate is None:
        return decay
    _check_argument(name, 'weight_decay', rate, 0.0)
    if decay.rate:
        raise UserError(
            f'weight decay is given twice: weight_decay={decay.rate} and '
            f'optimizer.weight_decay={rate}; keep only weight_decay'
        )
    if decay.form != 'default' or _own_decay(name) is None:
        raise UserError(
            f'optimizer {name!r}: set weight_decay={rate} instead of optimizer.weight_decay'
        )
    return dataclasses.replace(decay, rate=rate)


def _own_decay(name: str) -> tuple[str, str] | None:
    """Returns the names of the optimizer's own weight decay and mask arguments, if it has both."""
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    if name == 'muon':  # its own weight decay covers matrices only
        return None
    for decay, mask in (
        ('weight_decay', 'mask'),
        ('weight_decay', 'weight_decay_mask'),
        ('weight_decay_rate', 'weight_decay_mask'),
    ):
        if decay in parameters and mask in parameters:
            return decay, mask
    return None


def _scale_rates(rates: RateFactors) -> optax.GradientTransformation:
    """Returns a transformation that multiplies each update by its learning rate factor."""

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u, f: u * f, updates, rates.of(params))

    return optax.stateless(scale)
