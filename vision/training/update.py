"""Updates: from the examples of a step to the gradient that the optimizer gets, by `config.update`.

An update is a function, ours by name or a user's as 'package.module:function':

    update(state, examples, gradient_of, **arguments) -> (gradient, outcome)

`gradient_of(params, examples)` differentiates the loss of the global batch at any parameters and returns
`(gradient, outcome)`. It accumulates in parts inside (`training.accumulate`), and the gradient lies on
the devices as the parameters do (`training.shard`), so that every update does both.

`outcome` is the task's (`vision.task.Outcome`) with its `objective`. Of what the update returns, the sums are
logged, and `batch_stats` and `extra` become the state's.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vision.core import arguments
from vision.core.errors import UserError
from vision.core.state import TrainState
from vision.task.base import Examples, Outcome

GradientOf = Callable[[Any, Examples], tuple[Any, Outcome]]
Update = Callable[[TrainState, Examples, GradientOf], tuple[Any, Outcome]]


def gradient(state: TrainState, examples: Examples, gradient_of: GradientOf) -> tuple[Any, Outcome]:
    """The gradient of the loss at the state's parameters."""
    return gradient_of(state.params, examples)


def sam(
    state: TrainState, examples: Examples, gradient_of: GradientOf, rho: float = 0.05
) -> tuple[Any, Outcome]:
    """The gradient where the loss is highest nearby (Foret et al. 2021, eq. 2 and algorithm 1).

    w + ρ g / ‖g‖₂ approximates that place, with g the gradient at w and the norm over all parameters. The
    second gradient is taken on the same examples, dropped-out units included. The sums, and
    BatchNorm's running statistics are those of the first pass, at w. Weight decay is in the optimizer
    and takes no part in the ascent. A step costs two forward and backward passes.

    Args:
      state: before the step.
      examples: of the batch.
      gradient_of: differentiates the loss.
      rho: the distance ρ ≥ 0 that is climbed.
    """
    ascent, outcome = gradient_of(state.params, examples)
    # A gradient of zero climbs nowhere.
    scale = rho / jnp.maximum(optax.global_norm(ascent), 1e-12)
    climbed = jax.tree.map(lambda p, g: p + scale * g, state.params, ascent)
    descent, _ = gradient_of(climbed, examples)
    return descent, outcome


UPDATES: dict[str, Callable] = {'gradient': gradient, 'sam': sam}


def make_update(config: Mapping[str, Any]) -> Update:
    """The update that `config.update` names, with its arguments.

    Raises:
      UserError: an unknown update or argument, or a value that the argument cannot have.
    """
    name = config['name']
    function = arguments.find('update', name, UPDATES)
    given = {key: config[key] for key in config if key != 'name'}
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) < 3:
        raise UserError(
            f'update {config["name"]!r} must take (state, examples, gradient_of), and its arguments after them'
        )
    arguments.check(f'update {config["name"]!r}', function, parameters[3:], given)
    if given.get('rho', 0.0) < 0:
        raise UserError(f'update {config["name"]!r}: rho={given["rho"]} must be 0 or more')
    return functools.partial(function, **given)
