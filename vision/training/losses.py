"""Losses, per example. Each takes logits [B, K] and targets [B, K] and returns float32 [B].

Targets are probabilities over the classes: one-hot, smoothed or mixed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vision.core.errors import unknown

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−Σ_k target_k · log softmax(logits)_k, in float32."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
    """Mixes targets [B, K] with the uniform distribution (Szegedy et al. 2015b, section 7)."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


LOSSES: dict[str, Loss] = {
    'softmax_cross_entropy': softmax_cross_entropy,
}


def get_loss(name: str) -> Loss:
    """The loss of that name.

    Raises:
      UserError: there is none.
    """
    if name not in LOSSES:
        raise unknown('loss.name', name, LOSSES)
    return LOSSES[name]
