"""The training step: a pure, jitted function of the state and a batch, built from a `Recipe`.

The update, `config.update`, computes the gradient that the optimizer gets. It is one of `UPDATES`
or a user-defined 'package.module:function':

    update(state, examples, gradient_of, **arguments) -> (gradient, outcome)

`gradient_of(params, examples)` differentiates the loss of the global batch at any parameters and
returns `(gradient, outcome)`. It accumulates over microbatches (`training.accumulate`) and shards
the gradient like the parameters (`training.shard`), so every update supports both.

`outcome` is the task's `vision.task.Outcome` with its `objective`. The sums of the returned outcome
are logged, and its `batch_stats` and `extra` are stored in the state.
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
TrainSteps = Callable[..., tuple[TrainState, Metrics, Metrics]]
GradientOf = Callable[[Any, Examples], tuple[Any, Outcome]]
Update = Callable[[TrainState, Examples, GradientOf], tuple[Any, Outcome]]


def gradient(state: TrainState, examples: Examples, gradient_of: GradientOf) -> tuple[Any, Outcome]:
    """Returns the gradient of the loss at the state's parameters (plain gradient descent)."""
    return gradient_of(state.params, examples)


def sam(
    state: TrainState,
    examples: Examples,
    gradient_of: GradientOf,
    rho: Annotated[float, Range(low=0)] = 0.05,
) -> tuple[Any, Outcome]:
    """Sharpness-aware minimisation (Foret et al. 2021, eq. 2 and algorithm 1).

    Returns the gradient at w + ρ g / ‖g‖₂, where g is the gradient at the parameters w and the norm
    is taken over all of them. Both gradients use the same examples and dropout masks. The logged
    sums and BatchNorm's running statistics come from the first pass, at w. Weight decay is part of
    the optimizer and does not affect the ascent. A step costs two forward and backward passes.

    Args:
      state: the state before the step.
      examples: the examples of the batch.
      gradient_of: differentiates the loss.
      rho: radius ρ of the ascent.
    """
    ascent, outcome = gradient_of(state.params, examples)
    # Climb to the approximate maximum within radius rho; with a zero gradient, do not move.
    scale = rho / jnp.maximum(optax.global_norm(ascent), 1e-12)
    climbed = jax.tree.map(lambda p, g: p + scale * g, state.params, ascent)
    # Descend with the gradient from there.
    descent, _ = gradient_of(climbed, examples)
    return descent, outcome


UPDATES: dict[str, Callable] = {'gradient': gradient, 'sam': sam}


def make_update(config: Mapping[str, Any]) -> Update:
    """Returns the update that `config.update` names, with its arguments bound.

    Raises:
      UserError: an unknown update or argument, or an invalid value.
    """
    name = config['name']
    function = find('update', name, UPDATES)
    given = {key: config[key] for key in config if key != 'name'}
    # The first three parameters are fixed; the config may give the others.
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) < 3:
        raise UserError(
            f'update {name!r} must take (state, examples, gradient_of), then its own arguments'
        )
    check_arguments(f'update {name!r}', function, parameters[3:], given)
    return functools.partial(function, **given)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that a training step is built from.

    Attributes:
      model: the unbound module.
      task: computes the objective.
      update: computes the optimizer's gradient from the examples.
      optimizer_for: builds the optax optimizer for a schedule.
      schedule: learning rate as a function of the step.
      averaging: moving average of the parameters.
      factors: learning rate factors by parameter; 0 for frozen ones.
      plateau: settings of the plateau schedule, if it is used.
      frozen: whether dropout and BatchNorm run in evaluation mode.
      accumulate: number of microbatches.
      shard: 'data' or 'fsdp'.
      seed: seed of the initial parameters and of each step's randomness.
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
        """The optimizer with the recipe's schedule."""
        return self.optimizer_for(self.schedule)


def init_state(recipe: Recipe, input_shape: Sequence[int], mesh: Mesh) -> TrainState:
    """Makes the state of step 0 and puts it on the mesh; `Task.read` is left to `first_state`.

    The state is computed on one device and sharded afterwards: XLA may round initial values
    differently for another mesh, and a seed must give the same parameters on any number of devices.
    The state must therefore fit into the memory of one device, with 'fsdp' too.

    Args:
      recipe: the recipe of the run.
      input_shape: (H, W, C) of the model's input.
      mesh: all devices.
    """
    return mesh_lib.put_state(run_once(_initial(recipe, input_shape)), mesh, recipe.shard)


def trace(recipe: Recipe, input_shape: Sequence[int], mesh: Mesh, batch: Mapping[str, Any]) -> None:
    """Traces one step with abstract shapes, to check a user-defined task or update.

    Args:
      recipe: the recipe of the run.
      input_shape: (H, W, C) of the model's input.
      mesh: all devices.
      batch: shapes and dtypes of a batch.

    Raises:
      UserError: the task or the update returns an invalid result.
    """
    state = jax.eval_shape(_initial(recipe, input_shape))
    jax.eval_shape(make_train_step(recipe, mesh), state, batch)


def _initial(recipe: Recipe, input_shape: Sequence[int]) -> Callable[[], TrainState]:
    """Returns a function without arguments that makes the state of step 0."""
    model, task, averaged = recipe.model, recipe.task, bool(recipe.averaging)

    def init() -> TrainState:
        # Separate keys for the parameters, the steps and the task's extra state.
        param_key, run_key = root_key(recipe.seed, PARAMS), root_key(recipe.seed, RUN)
        variables = init_variables(model, input_shape, param_key)
        params, batch_stats = variables['params'], variables['batch_stats']
        extra = task.init(model, variables, root_key(recipe.seed, EXTRA))
        try:
            arrays = jax.tree.map(jnp.asarray, extra)
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
            extra=arrays,
        )

    return init


def make_train_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """Builds the jitted training step, `(state, batch) -> (state, metrics)`. It donates the state.

    The task prepares the batch and computes the objective, the update turns it into a gradient, and
    the optimizer applies the gradient.

    With `training.accumulate` = n, the batch is computed as n microbatches in sequence. Loss and
    gradient are those of the whole batch up to rounding: the mean over all its examples, clipped
    and applied once. Steps, schedules and logs do not change. BatchNorm normalises each microbatch
    by its own statistics over all devices and updates the running ones n times. `extra` is passed
    from one microbatch to the next. Row i of the batch belongs to microbatch i mod n.

    With `training.shard='fsdp'`, each device stores and updates its shard of the parameters and of
    `extra`, and gathers all of them for each use.

    The metrics are the task's sums over the batch and `count`, the learning rate `lr`, `grad_norm`
    of the trained parameters, `param_norm` after the update, and `finite`: whether the objective,
    the new parameters and the new running statistics are finite.
    """
    step = _make_step(recipe, mesh)
    # None keeps the sharding of the state that is passed in.
    return jax.jit(step, in_shardings=(None, mesh_lib.split_batch(mesh)), donate_argnums=0)


def make_train_steps(recipe: Recipe, mesh: Mesh, gather: Callable[..., Batch]) -> TrainSteps:
    """Builds a jitted function that takes several training steps in one call of the device.

    The step of a small network takes less time than an accelerator needs to start it. One call for
    many steps pays this once. The number of steps is an argument of the compiled loop. One program
    therefore serves every number of steps, and the state does not depend on how a run is cut into
    calls.

    Args:
      recipe: the recipe of the run.
      mesh: all devices.
      gather: makes a step's batch under jit from the data's arrays and the step's rows
        (`DeviceSplit.gather`).

    Returns:
      `(state, arrays, rows, count) -> (state, metrics, last)`; it donates the state. `arrays` are
      the data on the devices; `rows` are the rows of K steps, arrays [K, B, …], of which the first
      `count` ≤ K steps are taken. The metrics are arrays [K], of which the first `count` values are
      valid; `last` are the scalars of the last step.
    """
    step, split = _make_step(recipe, mesh), mesh_lib.split_batch(mesh)

    # Under jit, a step is traced once for the shapes of its metrics and for the loop.
    @jax.jit
    def take(state: TrainState, arrays: Any, rows: Batch) -> tuple[TrainState, Metrics]:
        batch = gather(*arrays, jax.lax.with_sharding_constraint(rows, split))
        state, metrics = step(state, jax.lax.with_sharding_constraint(batch, split))
        return state, jax.tree.map(jnp.asarray, metrics)

    def train_steps(
        state: TrainState, arrays: Any, rows: Batch, count: jax.Array
    ) -> tuple[TrainState, Metrics, Metrics]:
        # Reserve a row for the metrics of each step, in one array for each dtype.
        length, first = len(rows['id']), jax.tree.map(lambda x: x[0], rows)
        shapes = jax.eval_shape(take, state, arrays, first)[1]
        dtypes = sorted({x.dtype.name for x in shapes.values()})
        names = {d: [k for k, x in shapes.items() if x.dtype.name == d] for d in dtypes}
        found = {d: jnp.zeros((length, len(names[d])), d) for d in dtypes}

        def body(i: jax.Array, carry: tuple) -> tuple:
            state, found = carry
            state, metrics = take(state, arrays, jax.tree.map(lambda x: x[i], rows))
            values = {d: jnp.stack([metrics[k] for k in names[d]]) for d in dtypes}
            return state, {d: found[d].at[i].set(values[d]) for d in dtypes}

        # The number of steps is not a constant, so that one program serves all.
        state, found = jax.lax.fori_loop(0, count, body, (state, found))
        metrics = {k: found[d][:, j] for d in dtypes for j, k in enumerate(names[d])}
        return state, metrics, {k: column[count - 1] for k, column in metrics.items()}

    whole = mesh_lib.replicated(mesh)
    by_step = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'data'))
    shardings = (None, whole, by_step, whole)
    return jax.jit(train_steps, in_shardings=shardings, donate_argnums=0)


def _make_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """Builds the training step without jit."""
    task, optimizer, shard = recipe.task, recipe.optimizer, recipe.shard
    update = f'the update {getattr(recipe.update, "func", recipe.update).__name__}'
    gradient_at = _make_gradient(recipe, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Compute the gradient. The randomness of a step depends on the seed and the step only.
        key = jax.random.fold_in(state.rng, state.step)
        examples = prepared(task, batch, key)
        result = recipe.update(state, examples, gradient_at(state, key))
        gradient, outcome = _checked(result, update, state.batch_stats, state.extra)
        if not _alike(gradient, state.params):
            raise UserError(
                f'{update} must return a gradient with the structure and shapes of the parameters'
            )
        gradient = mesh_lib.constrain_state(gradient, mesh, shard)

        # Update the parameters and their moving average; frozen parameters keep their exact bits.
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, value=outcome.objective
        )
        new = {
            'params': optax.apply_updates(state.params, updates),
            'batch_stats': outcome.batch_stats,
        }
        new = recipe.factors.keep_frozen(state.variables, new)
        average = {'params': state.ema_params, 'batch_stats': state.ema_batch_stats}
        # The average moves towards the new parameters.
        if recipe.averaging:
            pull = recipe.averaging.pull(state.step + 1)
            moved = optax.incremental_update(new, average, pull)
            average = recipe.factors.keep_frozen(average, moved)

        # Collect the metrics.
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
        # Assemble the new state, with the sharding of the old one.
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

    return train_step


def _are_finite(tree: Any) -> jax.Array:
    """Returns a bool scalar: whether all values of a PyTree are finite."""
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _make_gradient(recipe: Recipe, mesh: Mesh) -> Callable[[TrainState, jax.Array], GradientOf]:
    """Builds `(state, key) -> gradient_of`; an update gets `gradient_of` as an argument."""
    parts, shard = recipe.accumulate, recipe.shard
    loss = f'{type(recipe.task).__name__}.loss'

    def objective(
        params: Any, batch_stats: Any, extra: Any, examples: Examples, key: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        # Gather sharded parameters. `stop_gradient` lets XLA skip the gradients of frozen ones.
        params, gathered = mesh_lib.constrain_state((params, extra), mesh, 'data')
        factors = recipe.factors.of(params)
        params = jax.tree.map(lambda p, f: p if f else jax.lax.stop_gradient(p), params, factors)
        apply = Apply(recipe.model, params, batch_stats, train=not recipe.frozen)
        result = recipe.task.loss(apply, examples, gathered, key)
        # Check a user-defined loss at trace time.
        value, outcome = _checked(result, loss, batch_stats, extra)
        if np.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise UserError(
                f'{loss} must return a float scalar to minimise, not {described(value)}'
            )
        extra = mesh_lib.constrain_state(outcome.extra, mesh, shard)
        return value, outcome._replace(objective=value, extra=extra)

    differentiate = jax.grad(objective, has_aux=True)

    def at(state: TrainState, key: jax.Array) -> GradientOf:
        def gradient_of(params: Any, examples: Examples) -> tuple[Any, Outcome]:
            # Without accumulation, differentiate the loss of the whole batch at once.
            if parts == 1:
                gradient, outcome = differentiate(
                    params, state.batch_stats, state.extra, examples, key
                )
                return mesh_lib.constrain_state(gradient, mesh, shard), outcome

            # Split the arrays into microbatches. Scalars, such as `count`, stay whole.
            scalars = {k: v for k, v in examples.items() if not jnp.ndim(v)}
            arrays = {k: v for k, v in examples.items() if jnp.ndim(v)}

            # Add one microbatch's gradient and sums; pass on the running statistics and `extra`.
            # Tasks divide by the `count` of the whole batch, so the gradients add up to the
            # gradient of the mean over the whole batch.
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
            # Start the sums at zero, in the shapes that the loss returns.
            shapes = jax.eval_shape(
                objective, params, state.batch_stats, state.extra, {**first, **scalars}, key
            )[1]
            zeros, sums = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype), (params, (shapes.sums, shapes.objective))
            )
            start = (zeros, sums, state.batch_stats, state.extra)
            # Scan over the microbatches, so that only one is in memory at a time.
            part_keys = jax.random.split(jax.random.fold_in(key, PART), parts)
            carry, _ = jax.lax.scan(add, start, (part_keys, rows))
            gradient, (sums, value), stats, extra = carry
            return gradient, Outcome(sums, stats, extra, value)

        return gradient_of

    return at


_RESERVED = {'count', 'lr', 'grad_norm', 'param_norm', 'finite'}


def _checked(result: Any, who: str, batch_stats: Any, extra: Any) -> tuple[Any, Outcome]:
    """Returns the result of a loss or an update after checking it, at trace time.

    The result must be a pair of a value and an `Outcome` whose PyTrees match the state's.

    Raises:
      UserError: the result is something else.
    """
    pair = isinstance(result, tuple) and len(result) == 2
    if not pair or not isinstance(result[1], Outcome):
        raise UserError(
            f'{who} must return a pair (value, vision.task.Outcome), '
            f'not {described(result[1] if pair else result)}'
        )
    # The log needs a sum 'loss'. The names of the metrics that the step adds are reserved.
    outcome = result[1]
    sums = outcome.sums if isinstance(outcome.sums, dict) else {}
    if 'loss' not in sums:
        raise UserError(f"{who}: the sums of its Outcome must include 'loss'")
    if taken := _RESERVED & set(sums):
        raise UserError(f'{who}: the name of the sum {taken.pop()!r} is reserved; rename it')
    # The jitted step needs scalar sums and PyTrees of a fixed structure.
    for name, value in sums.items():
        if np.shape(value):
            raise UserError(f'{who}: the sum {name!r} must be a scalar, not {described(value)}')
    for name, new, old in (
        ('batch_stats', outcome.batch_stats, batch_stats),
        ('extra', outcome.extra, extra),
    ):
        types = [[jnp.result_type(x) for x in jax.tree.leaves(tree)] for tree in (new, old)]
        if not _alike(new, old) or types[0] != types[1]:
            raise UserError(
                f'{who}: {name} of its Outcome must have the structure, shapes and types of the '
                "state's"
            )
    return result[0], outcome


def _alike(tree: Any, other: Any) -> bool:
    """Returns True if two PyTrees have the same structure and shapes."""
    return jax.tree.structure(tree) == jax.tree.structure(other) and all(  # type: ignore[operator]
        np.shape(a) == np.shape(b)
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    )
