"""The training step: a pure function of the state and a batch, built of a recipe.

Its update, by `config.update`, makes the gradient that the optimizer gets of the examples. It is a
function, ours by name or a user's as 'package.module:function':

    update(state, examples, gradient_of, **arguments) -> (gradient, outcome)

`gradient_of(params, examples)` differentiates the loss of the global batch at any parameters and returns
`(gradient, outcome)`. It accumulates in parts inside (`training.accumulate`), and the gradient lies on
the devices as the parameters do (`training.shard`), so that every update does both.

`outcome` is the task's (`vision.task.Outcome`) with its `objective`. Of what the update returns, the sums are
logged, and `batch_stats` and `extra` become the state's.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vision.core import mesh as mesh_lib
from vision.core.config_keys import Range, check_arguments, find
from vision.core.errors import UserError
from vision.core.state import EXTRA, PARAMS, PART, RUN, TrainState, root_key
from vision.core.text import described
from vision.models.base import init_variables, run_once
from vision.preprocess.device import Batch
from vision.task.base import Apply, Examples, Outcome, Task, prepared
from vision.training.optimizer import RateFactors
from vision.training.schedules import Averaging

if TYPE_CHECKING:
    from vision.training.plateau import Plateau

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
GradientOf = Callable[[Any, Examples], tuple[Any, Outcome]]
Update = Callable[[TrainState, Examples, GradientOf], tuple[Any, Outcome]]


def gradient(state: TrainState, examples: Examples, gradient_of: GradientOf) -> tuple[Any, Outcome]:
    """The gradient of the loss at the state's parameters."""
    return gradient_of(state.params, examples)


def sam(
    state: TrainState,
    examples: Examples,
    gradient_of: GradientOf,
    rho: Annotated[float, Range(low=0)] = 0.05,
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
      rho: the distance ρ that is climbed.
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
    function = find('update', name, UPDATES)
    given = {key: config[key] for key in config if key != 'name'}
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) < 3:
        raise UserError(
            f'update {name!r} must take (state, examples, gradient_of), and its arguments after them'
        )
    check_arguments(f'update {name!r}', function, parameters[3:], given)
    return functools.partial(function, **given)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a training step is built of.

    Attributes:
      model: unbound.
      task: what is optimised.
      update: from the examples to the optimizer's gradient.
      optimizer_for: builds optax's, for a learning rate by step.
      schedule: the learning rate by step.
      averaging: of the parameters.
      factors: of the learning rate by parameter; 0 where one is frozen.
      plateau: the schedule's settings, if it is told of evaluations.
      frozen: whether dropout and BatchNorm run as in evaluation.
      accumulate: the parts that a batch is computed in.
      shard: 'data' or 'fsdp'.
      seed: of the parameters and the steps' randomness.
    """

    model: nn.Module
    task: Task
    update: Update
    optimizer_for: Callable[[optax.Schedule], optax.GradientTransformation]
    schedule: optax.Schedule
    averaging: Averaging
    factors: RateFactors
    plateau: 'Plateau | None'
    frozen: bool
    accumulate: int
    shard: str
    seed: int

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """From the gradient to the change of the parameters, at the schedule's rate."""
        return self.optimizer_for(self.schedule)


def init_state(recipe: Recipe, input_shape: Sequence[int], mesh: Mesh) -> TrainState:
    """Makes the state of step 0 and puts it on the mesh.

    It is jitted for one device and laid out afterwards: XLA may round the initial values
    differently for another mesh, and a seed must mean the same parameters on any number of devices.
    (So with 'fsdp', too, the state must fit into the memory of one device, once.)

    Args:
      recipe: of the run.
      input_shape: (H, W, C) of what the model is fed.
      mesh: of all devices.
    """
    return mesh_lib.put_state(run_once(_initial(recipe, input_shape)), mesh, recipe.shard)


def trace(recipe: Recipe, input_shape: Sequence[int], mesh: Mesh, batch: Mapping[str, Any]) -> None:
    """Traces a step from the initial state and computes nothing: for a task or an update of a user's own.

    Args:
      recipe: of the run.
      input_shape: (H, W, C) of what the model is fed.
      mesh: of all devices.
      batch: the shapes of a batch.

    Raises:
      UserError: the task or the update returns something else than it must.
    """
    state = jax.eval_shape(_initial(recipe, input_shape))
    jax.eval_shape(make_train_step(recipe, mesh), state, batch)


def _initial(recipe: Recipe, input_shape: Sequence[int]) -> Callable[[], TrainState]:
    model, task, averaged = recipe.model, recipe.task, bool(recipe.averaging)

    def init() -> TrainState:
        param_key, run_key = root_key(recipe.seed, PARAMS), root_key(recipe.seed, RUN)
        variables = init_variables(model, input_shape, param_key)
        params, batch_stats = variables['params'], variables['batch_stats']
        extra = task.init(model, variables, root_key(recipe.seed, EXTRA))
        try:
            extra = jax.tree.map(jnp.asarray, extra)
        except TypeError as e:
            raise UserError(
                f'{type(task).__name__}.init must return a tree of arrays, or None: {e}'
            ) from None
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=recipe.optimizer.init(params),
            ema_params=params if averaged else None,
            ema_batch_stats=batch_stats if averaged else None,
            rng=run_key,
            extra=extra,
        )

    return init


def make_train_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """Builds the jitted step, one update of the parameters; the state that it is given is donated.

    The task prepares the batch and computes the objective, the update (`config.update`) makes a gradient of
    it, and the optimizer applies that.

    With `training.accumulate` = n the batch is computed in n parts, one after the other. Loss and
    gradient are those of the whole batch (up to rounding): the mean over all its examples, clipped
    and applied once, so steps, schedules and logs are what they are without. BatchNorm normalises
    each part by the part's own statistics (over all devices), as with a batch of B / n, and moves
    its running ones n times; `extra` passes from part to part, too. Row i of the batch is in part i mod n.

    With `training.shard='fsdp'` the parameters are gathered from all devices for each use, and
    every device updates its share.

    Its metrics are the task's sums over the batch's examples and `count`, the learning rate `lr`, the norms of
    the gradient of what is not frozen and of the new parameters, and `finite`: whether the objective and all
    new parameters and running statistics are numbers.

    Args:
      recipe: of the run.
      mesh: of all devices.
    """
    task, optimizer, shard = recipe.task, recipe.optimizer, recipe.shard
    update = f'the update {getattr(recipe.update, "func", recipe.update).__name__}'
    gradient_at = _make_gradient(recipe, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # The gradient that the optimizer gets.
        key = jax.random.fold_in(state.rng, state.step)
        examples = prepared(task, batch, key)
        result = recipe.update(state, examples, gradient_at(state, key))
        gradient, outcome = _checked(result, update, state.batch_stats, state.extra)
        if not _alike(gradient, state.params):
            raise UserError(f'{update} must return a gradient of the same tree as the parameters')
        gradient = mesh_lib.constrain_state(gradient, mesh, shard)

        # The new parameters and their average.
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, value=outcome.objective
        )
        new = {
            'params': optax.apply_updates(state.params, updates),
            'batch_stats': outcome.batch_stats,
        }
        new = recipe.factors.keep_frozen(state.variables, new)
        average = {'params': state.ema_params, 'batch_stats': state.ema_batch_stats}
        if recipe.averaging:
            pull = recipe.averaging.pull(state.step + 1)
            moved = optax.incremental_update(new, average, pull)
            average = recipe.factors.keep_frozen(average, moved)

        rate = recipe.schedule(state.step)
        if recipe.plateau is not None:
            rate *= recipe.plateau.scale(state.opt_state)
        param_norm = optax.global_norm(new['params'])
        metrics = {
            **outcome.sums,
            'count': jnp.sum(examples['mask']),
            'lr': jnp.asarray(rate, jnp.float32),
            'grad_norm': optax.global_norm(gradient),
            'param_norm': param_norm,
            'finite': jnp.isfinite(outcome.objective)
            & jnp.isfinite(param_norm)
            & _are_finite(new['batch_stats']),
        }
        after = TrainState(
            step=state.step + 1,
            params=new['params'],
            batch_stats=new['batch_stats'],
            opt_state=opt_state,
            ema_params=average['params'],
            ema_batch_stats=average['batch_stats'],
            rng=state.rng,
            extra=outcome.extra,
        )
        return mesh_lib.constrain_state(after, mesh, shard), metrics

    # The state comes, and goes, as it lies on the mesh.
    return jax.jit(train_step, in_shardings=(None, mesh_lib.split_batch(mesh)), donate_argnums=0)


def _are_finite(tree: Any) -> jax.Array:
    """True if all values of a PyTree are: a scalar."""
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _make_gradient(recipe: Recipe, mesh: Mesh) -> Callable[[TrainState, jax.Array], GradientOf]:
    """Builds `(state, key) -> gradient_of`, as updates get it."""
    parts, shard = recipe.accumulate, recipe.shard
    loss = f'{type(recipe.task).__name__}.loss'

    def objective(
        params: Any, batch_stats: Any, extra: Any, examples: Examples, key: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        # XLA gathers what is sharded, and leaves out the gradients that nothing asks for.
        params = mesh_lib.constrain_state(params, mesh, 'data')
        factors = recipe.factors.of(params)
        params = jax.tree.map(lambda p, f: p if f else jax.lax.stop_gradient(p), params, factors)
        apply = Apply(recipe.model, params, batch_stats, train=not recipe.frozen)
        result = recipe.task.loss(apply, examples, extra, key)
        value, outcome = _checked(result, loss, batch_stats, extra)
        if np.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise UserError(
                f'{loss} must return a float scalar to minimise, not {described(value)}'
            )
        return value, outcome._replace(objective=value)

    differentiate = jax.grad(objective, has_aux=True)

    def at(state: TrainState, key: jax.Array) -> GradientOf:
        def gradient_of(params: Any, examples: Examples) -> tuple[Any, Outcome]:
            if parts == 1:
                gradient, outcome = differentiate(
                    params, state.batch_stats, state.extra, examples, key
                )
                return mesh_lib.constrain_state(gradient, mesh, shard), outcome

            # Arrays of the batch are dealt out to the parts; scalars are the whole batch's.
            scalars = {k: v for k, v in examples.items() if not jnp.ndim(v)}
            arrays = {k: v for k, v in examples.items() if jnp.ndim(v)}

            def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
                gradient, sums, stats, extra = carry
                part_key, rows = part
                more, outcome = differentiate(params, stats, extra, {**rows, **scalars}, part_key)
                found = (outcome.sums, outcome.objective)
                gradient, sums = jax.tree.map(jnp.add, (gradient, sums), (more, found))
                gradient = mesh_lib.constrain_state(gradient, mesh, shard)
                return (gradient, sums, outcome.batch_stats, outcome.extra), None

            rows = mesh_lib.microbatches(arrays, parts, mesh)
            first = {k: v[0] for k, v in rows.items()}
            shapes = jax.eval_shape(
                objective, params, state.batch_stats, state.extra, {**first, **scalars}, key
            )[1]
            zeros, sums = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), (params, (shapes.sums, shapes.objective))
            )
            start = (zeros, sums, state.batch_stats, state.extra)
            part_keys = jax.random.split(jax.random.fold_in(key, PART), parts)
            carry, _ = jax.lax.scan(add, start, (part_keys, rows))
            gradient, (sums, value), stats, extra = carry
            return gradient, Outcome(sums, stats, extra, value)

        return gradient_of

    return at


_RESERVED = {'count', 'lr', 'grad_norm', 'param_norm', 'finite'}


def _checked(result: Any, who: str, batch_stats: Any, extra: Any) -> tuple[Any, Outcome]:
    """The result of a loss or an update, if it is a value and an `Outcome` that fits the state; for tracing.

    Raises:
      UserError: it is something else.
    """
    pair = isinstance(result, tuple) and len(result) == 2
    if not pair or not isinstance(result[1], Outcome):
        raise UserError(
            f'{who} must return a pair whose second is a vision.task.Outcome, not {described(result[1] if pair else result)}'
        )
    outcome = result[1]
    sums = outcome.sums if isinstance(outcome.sums, dict) else {}
    if 'loss' not in sums:
        raise UserError(f"{who}: its Outcome has no sum 'loss'")
    if taken := _RESERVED & set(sums):
        raise UserError(f'{who}: the sum {taken.pop()!r} has a name that the log uses; rename it')
    for name, value in sums.items():
        if np.shape(value):
            raise UserError(f'{who}: the sum {name!r} must be a scalar, not {described(value)}')
    for name, new, old in (
        ('batch_stats', outcome.batch_stats, batch_stats),
        ('extra', outcome.extra, extra),
    ):
        if not _alike(new, old):
            raise UserError(
                f"{who}: its Outcome's {name} must have the tree and shapes of the state's"
            )
    return result[0], outcome


def _alike(tree: Any, other: Any) -> bool:
    """True if two PyTrees have one structure and the same shapes."""
    return jax.tree.structure(tree) == jax.tree.structure(other) and all(  # type: ignore[operator]
        np.shape(a) == np.shape(b)
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    )
