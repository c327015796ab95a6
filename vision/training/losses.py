"""Losses, per example. Each takes logits [B, K] and targets [B, K] and returns float32 [B].

Targets are probabilities over the classes: one-hot, smoothed or mixed.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vision.core.errors import unknown
from vision.training.lenet_losses import lenet_discriminative, lenet_mse

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−Σ_k target_k · log softmax(logits)_k, in float32."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
    """Mixes targets [B, K] with the uniform distribution (Szegedy et al. 2015b, section 7)."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


LOSSES: dict[str, Callable[..., jax.Array]] = {
    'softmax_cross_entropy': softmax_cross_entropy,
    'lenet_mse': lenet_mse,
    'lenet_discriminative': lenet_discriminative,
}

# Keys of config.loss that are no arguments of the loss.
_COMMON = ('name', 'label_smoothing', 'aux_weight')


def make_loss(config: ConfigDict) -> Loss:
    """The loss that `config.loss` names, with its arguments.

    Raises:
      UserError: an unknown loss or argument.
    """
    if config.name not in LOSSES:
        raise unknown('loss.name', config.name, LOSSES)
    loss = LOSSES[config.name]
    arguments = {key: config[key] for key in config if key not in _COMMON}
    own = list(inspect.signature(loss).parameters)[2:]
    for key in arguments:
        if key not in own:
            raise unknown(f'argument of loss {config.name!r}', key, [*own, *_COMMON])
    return functools.partial(loss, **arguments)
