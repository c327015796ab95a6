"""The training step: a pure function of the state and a batch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision.core import mesh as mesh_lib
from vision.core.state import TrainState
from vision.evaluation.run import init_variables, run_once
from vision.preprocess.device import Batch, normalise
from vision.preprocess.mix import mix
from vision.training import losses, patterns, plateau
from vision.training.averages import make_averaging
from vision.training.patterns import RateFactors
from vision.training.update import Examples, GradientOf, Outcome, make_update

Metrics = dict[str, jax.Array]

MIX = 1  # folded into a step's key for mixup and CutMix; dropout takes the key itself
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    input_shape: tuple[int, int, int],
    mesh: Mesh,
) -> TrainState:
    """Makes the state of step 0 and puts it on the mesh.

    It is jitted for one device and laid out afterwards: XLA may round the initial values
    differently for another mesh, and a seed must mean the same parameters on any number of devices.
    (So with 'fsdp', too, the state must fit into the memory of one device, once.)

    Args:
      model: to be initialised.
      optimizer: of the run.
      config: `seed`, and of `training` the averages and `shard` are used.
      input_shape: (H, W, C) of what the model is fed.
      mesh: of all devices.
    """

    averaged = make_averaging(config.training.to_dict())

    def init() -> TrainState:
        param_key, run_key = jax.random.split(jax.random.key(config.seed))
        variables = init_variables(model, input_shape, param_key)
        params, batch_stats = variables['params'], variables['batch_stats']
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema_params=params if averaged else None,
            ema_batch_stats=batch_stats if averaged else None,
            rng=run_key,
        )

    return mesh_lib.put_state(run_once(init), mesh, config.training.shard)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> TrainStep:
    """Builds the jitted step, one update of the parameters; the state that it is given is donated.

    With `training.accumulate` = n the batch is computed in n parts, one after the other. Loss and
    gradient are those of the whole batch (up to rounding): the mean over all its examples, clipped
    and applied once, so steps, schedules and logs are what they are without. BatchNorm normalises
    each part by the part's own statistics (over all devices), as with a batch of B / n, and moves
    its running ones n times. Row i of the batch is in part i mod n.

    With `training.shard='fsdp'` the parameters are gathered from all devices for each use, and
    every device updates its share.

    Its metrics are sums over the batch's examples (`loss`, `correct`, `count`; with class weights
    `loss` is `count` times the weighted mean; of a mixed label the largest share is right), the
    learning rate `lr`, the norms of the gradient of what is not frozen and of the new parameters,
    and `finite`: whether the loss and all new parameters are numbers.

    Args:
      model: unbound.
      optimizer: as `make_optimizer` builds it.
      schedule: the learning rate by step.
      config: the whole config.
      mesh: of all devices.
    """
    averaging = make_averaging(config.training.to_dict())
    loss = losses.make_loss(config.loss.to_dict())
    shard = config.training.shard
    update = make_update(config['update'])
    gradient_at = _make_gradient(model, config, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.rng, state.step)
        examples = make_examples(batch, config, model.num_classes, key)
        normaliser = loss.total_weight(examples)
        gradient, outcome = update(state, examples, gradient_at(state.batch_stats, key))
        gradient = mesh_lib.constrain_state(gradient, mesh, shard)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, value=outcome['objective']
        )
        params = optax.apply_updates(state.params, updates)
        ema_params, ema_batch_stats = state.ema_params, state.ema_batch_stats
        if averaging:
            rate = averaging.pull(state.step + 1)
            ema_params = optax.incremental_update(params, ema_params, rate)
            ema_batch_stats = optax.incremental_update(
                outcome['batch_stats'], ema_batch_stats, rate
            )
        count, param_norm = jnp.sum(examples['mask']), optax.global_norm(params)
        metrics = {
            'loss': outcome['loss'] * (count / normaliser),
            'correct': outcome['correct'],
            'count': count,
            'lr': jnp.asarray(schedule(state.step) * plateau.scale(state.opt_state), jnp.float32),
            'grad_norm': optax.global_norm(gradient),
            'param_norm': param_norm,
            'finite': jnp.isfinite(outcome['loss']) & jnp.isfinite(param_norm),
        }
        new = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=outcome['batch_stats'],
            opt_state=opt_state,
            ema_params=ema_params,
            ema_batch_stats=ema_batch_stats,
            rng=state.rng,
        )
        return mesh_lib.constrain_state(new, mesh, shard), metrics

    # The state comes, and goes, as it lies on the mesh.
    return jax.jit(train_step, in_shardings=(None, mesh_lib.split_batch(mesh)), donate_argnums=0)


def make_examples(batch: Batch, config: ConfigDict, num_classes: int, key: jax.Array) -> Examples:
    """Turns a batch into what the model is fed and what its loss is measured against, mixed.

    Returns:
      `images` float32 [B, H, W, C]; `targets` float32 [B, K], of which the largest is the right answer;
      `mask` float32 [B].
    """
    images, targets = mix(
        normalise(batch['image'], config.preprocess.mean, config.preprocess.std),
        jax.nn.one_hot(batch['label'], num_classes),
        batch['mask'],
        jax.random.fold_in(key, MIX),
        config.preprocess.mixup,
        config.preprocess.cutmix,
    )
    return {'images': images, 'targets': targets, 'mask': batch['mask']}


def _make_gradient(
    model: nn.Module, config: ConfigDict, mesh: Mesh
) -> Callable[[Any, jax.Array], GradientOf]:
    """Builds `(batch_stats, key) -> gradient_of`, as updates get it (`vision.training.update`)."""
    frozen = config.freeze == patterns.BACKBONE  # its batch statistics and dropout too
    rates = RateFactors(config.freeze, config.lr_factors)
    loss, parts = losses.make_loss(config.loss.to_dict()), config.training.accumulate

    def objective(
        params: Any, batch_stats: Any, examples: Examples, normaliser: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        # XLA gathers what is sharded, and leaves out the gradients that nothing asks for.
        params = mesh_lib.constrain_state(params, mesh, 'data')
        factors = rates.of(params)
        params = jax.tree.map(lambda p, f: p if f else jax.lax.stop_gradient(p), params, factors)
        (logits, endpoints), updated = model.apply(
            {'params': params, 'batch_stats': batch_stats},
            examples['images'],
            train=not frozen,
            rngs={'dropout': key},
            mutable=['batch_stats'],
        )
        mask, right = examples['mask'], examples['targets'].argmax(-1)
        targets = loss.targets(examples['targets'])
        main = jnp.sum(loss.per_example(logits, targets) * mask)
        total = main / normaliser
        for aux in endpoints.get('aux', ()):
            other = jnp.sum(loss.per_example(aux, targets) * mask)
            total += loss.aux_weight * other / normaliser
        correct = jnp.sum((logits.argmax(-1) == right) * mask)
        stats = updated.get('batch_stats', batch_stats)
        return total, {
            'objective': total, 'loss': main, 'correct': correct, 'batch_stats': stats,
        }  # fmt: skip

    differentiate = jax.grad(objective, has_aux=True)

    def with_state(batch_stats: Any, key: jax.Array) -> GradientOf:
        def gradient_of(params: Any, examples: Examples) -> tuple[Any, Outcome]:
            normaliser = loss.total_weight(examples)
            if parts == 1:
                gradient, outcome = differentiate(params, batch_stats, examples, normaliser, key)
                return mesh_lib.constrain_state(gradient, mesh, config.training.shard), outcome

            def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
                gradient, sums, stats = carry
                part_key, rows = part
                more, outcome = differentiate(params, stats, rows, normaliser, part_key)
                stats = outcome.pop('batch_stats')
                gradient, sums = jax.tree.map(jnp.add, (gradient, sums), (more, outcome))
                gradient = mesh_lib.constrain_state(gradient, mesh, config.training.shard)
                return (gradient, sums, stats), None

            zeros = jax.tree.map(jnp.zeros_like, params)
            sums = dict.fromkeys(('objective', 'loss', 'correct'), jnp.zeros(()))
            rows = mesh_lib.microbatches(examples, parts, mesh)
            start = (zeros, sums, batch_stats)
            carry, _ = jax.lax.scan(add, start, (jax.random.split(key, parts), rows))
            gradient, sums, stats = carry
            return gradient, {**sums, 'batch_stats': stats}

        return gradient_of

    return with_state
