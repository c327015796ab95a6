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
from vision.evaluation.run import init_variables
from vision.preprocess.device import Batch, normalise
from vision.training import losses

Metrics = dict[str, jax.Array]
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

    Args:
      model: to be initialised.
      optimizer: of the run.
      config: `seed` and `training.ema_decay` are used.
      input_shape: (H, W, C) of what the model is fed.
      mesh: of all devices.
    """

    def init() -> TrainState:
        param_key, run_key = jax.random.split(jax.random.key(config.seed))
        variables = init_variables(model, input_shape, param_key)
        params, batch_stats = variables['params'], variables['batch_stats']
        ema = config.training.ema_decay > 0
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema_params=params if ema else None,
            ema_batch_stats=batch_stats if ema else None,
            rng=run_key,
        )

    return mesh_lib.put_replicated(jax.jit(init)(), mesh)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> TrainStep:
    """Builds the jitted step; the state that it is given is donated.

    Its metrics are sums over the batch's examples (`loss`, `correct`, `count`), the learning rate
    `lr`, the norms of the gradient and of the new parameters, and `finite`: whether the loss and
    all new parameters are numbers.
    """
    frozen = config.freeze == 'backbone'  # its batch statistics and dropout too
    loss_fn = losses.make_loss(config.loss)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = normalise(batch['image'], config.preprocess.mean, config.preprocess.std)
        mask = batch['mask']

        def objective(params: Any) -> tuple[jax.Array, tuple]:
            (logits, endpoints), updated = model.apply(
                {'params': params, 'batch_stats': state.batch_stats},
                images,
                train=not frozen,
                rngs={'dropout': jax.random.fold_in(state.rng, state.step)},
                mutable=['batch_stats'],
            )
            targets = jax.nn.one_hot(batch['label'], logits.shape[-1])
            smoothed = losses.smooth_labels(targets, config.loss.label_smoothing)
            example_loss = loss_fn(logits, smoothed)
            total = mean(example_loss, mask)
            for aux in endpoints.get('aux', ()):
                total += config.loss.aux_weight * mean(loss_fn(aux, smoothed), mask)
            return total, (example_loss, logits, updated.get('batch_stats', state.batch_stats))

        gradient, (example_loss, logits, batch_stats) = jax.grad(objective, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss_sum, param_norm = jnp.sum(example_loss * mask), optax.global_norm(params)
        metrics = {
            'loss': loss_sum,
            'correct': jnp.sum((logits.argmax(-1) == batch['label']) * mask),
            'count': jnp.sum(mask),
            'lr': jnp.asarray(schedule(state.step), jnp.float32),
            'grad_norm': optax.global_norm(gradient),
            'param_norm': param_norm,
            'finite': jnp.isfinite(loss_sum) & jnp.isfinite(param_norm),
        }
        ema_params, ema_batch_stats = state.ema_params, state.ema_batch_stats
        if ema_params is not None:
            pull = 1 - config.training.ema_decay
            ema_params = optax.incremental_update(params, ema_params, pull)
            ema_batch_stats = optax.incremental_update(batch_stats, ema_batch_stats, pull)
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
            ema_batch_stats=ema_batch_stats,
            rng=state.rng,
        ), metrics

    replicated = mesh_lib.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(replicated, mesh_lib.split_batch(mesh)),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
    )


def mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of `values` [B] over the examples whose mask is 1; 0 if there are none."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1.0)
