"""The two losses of LeNet-5's paper (LeCun et al. 1998, section II.C), for logits that are minus distances."""

from typing import Annotated

import jax
import jax.numpy as jnp

from vision.core.config_keys import Range


def lenet_mse(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Eq. 8: the distance of the correct class's bitmap.

    Args:
      logits: float32 [B, 10], minus the distances y.
      targets: float32 [B, 10], one-hot or mixed.

    Returns:
      float32 [B]: y of the correct class, or the mean of y weighted by the targets.
    """
    return -(targets * logits).sum(-1)


def lenet_discriminative(
    logits: jax.Array, targets: jax.Array, j: Annotated[float, Range(above=0)] = 1.0
) -> jax.Array:
    """Eq. 9: the correct class's distance, and a penalty for each other class that is near.

    y_correct + log(exp(-j) + sum over classes of exp(-y)). The constant j > 0 is a 'rubbish'
    class: classes much further away than j are not pushed further. The paper gives no value.

    Args:
      logits: float32 [B, 10], minus the distances y.
      targets: float32 [B, 10], one-hot or mixed.
      j: the rubbish class's distance.

    Returns:
      float32 [B], never negative for one-hot targets.
    """
    rubbish = jnp.full((*logits.shape[:-1], 1), -j, logits.dtype)
    competing = jax.nn.logsumexp(jnp.concatenate([logits, rubbish], -1), axis=-1)
    return lenet_mse(logits, targets) + targets.sum(-1) * competing
