"""Layers of transformers, and of the convolutional networks that took them over."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.layers import Initializer

# Layer normalisation (Ba et al. 2016) over the last axis: parameters `scale` and `bias` [C]. Means
# and variances are in float32, and the variance is computed from the centred values.
LayerNorm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class LayerScale(nn.Module):
    """Learned factor for each channel of a residual branch (Touvron et al. 2021, CaiT, eq. 3).

    Parameter `gamma` [C], initialised to `initial`.
    """

    initial: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiplies [..., C] by `gamma`."""
        init: Initializer = nn.initializers.constant(self.initial)
        gamma = self.param('gamma', init, (x.shape[-1],), jnp.float32)
        return x * gamma.astype(self.dtype)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops the residual branch of single images.

    An image keeps its branch with probability 1 - `rate`, divided by that probability.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns [B, ...] with the branch of some images set to zero, if `train`."""
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=axes)(x, deterministic=not train)
