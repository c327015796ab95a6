"""Layers of transformers, some of which convolutional networks have adopted."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.layers import Dense, Initializer, fast_forms_allowed

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
    """Stochastic depth (Huang et al. 2016): drops the residual branch of random images.

    An image keeps its branch with probability 1 - `rate`. Kept branches are divided by this
    probability.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns [B, ...] with the branch of some images set to zero, if `train`."""
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=axes)(x, deterministic=not train)


def gelu(x: jax.Array) -> jax.Array:
    """Gaussian error linear unit (Hendrycks and Gimpel 2016): x times the normal CDF at x.

    The computation is in float32, because in bfloat16 the sum 1 + erf(x / √2) would cancel for
    negative values. `nn.gelu` computes the same with `erfc`, which takes longer on CPUs.
    """
    y = x.astype(jnp.float32)
    return (y * (0.5 + 0.5 * jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Sigmoid approximation of the GELU, as in OpenAI's CLIP."""
    return x * nn.sigmoid(1.702 * x)


# Activations by the names that models accept as argument. 'gelu_tanh' is the approximation in
# section 2 of the GELU paper and JAX's default.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu': gelu,
    'gelu_tanh': partial(nn.gelu, approximate=True),
    'quick_gelu': quick_gelu,
}


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1), with float32 softmax.

    On GPUs of compute capability 8.0 or higher, 16-bit types use cuDNN's fused kernel, which does
    not store the N × M weights.

    Args:
      query: [B, N, heads, D].
      key: [B, M, heads, D].
      value: like `key`.

    Returns:
      [B, N, heads, D].
    """
    fused = _has_fused_attention() and query.dtype.itemsize == 2 and query.shape[1] > 1
    fused = fused and fast_forms_allowed() and query.shape[-1] in range(8, 129, 8)
    return jax.nn.dot_product_attention(
        query, key, value, implementation='cudnn' if fused else 'xla'
    )


def _has_fused_attention() -> bool:
    """Returns True if the default device is a GPU with cuDNN's flash attention."""
    capability = str(getattr(jax.devices()[0], 'compute_capability', ''))
    return jax.default_backend() == 'gpu' and capability[:1].isdigit() and float(capability) >= 8


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2).

    One matrix product `qkv` computes queries, keys and values, in this order. In each of them, the
    heads follow one another.
    """

    heads: int
    qkv_init: Initializer
    kernel_init: Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, N, D] to [B, N, D]."""
        batch, length, width = x.shape
        qkv = Dense(3 * width, kernel_init=self.qkv_init, dtype=self.dtype, name='qkv')(x)
        qkv = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
        x = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(batch, length, width)
        return Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name='proj')(x)


class Mlp(nn.Module):
    """Two dense layers with an activation between them (Vaswani et al. 2017, section 3.3).

    Attributes:
      hidden: width of the inner layer.
      activation: a key of `ACTIVATIONS`.
      dropout: rate after each of the two layers.
    """

    hidden: int
    activation: str
    kernel_init: Initializer
    bias_init: Initializer = nn.initializers.zeros
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [..., D] to [..., D]."""
        dense = partial(
            Dense, kernel_init=self.kernel_init, bias_init=self.bias_init, dtype=self.dtype
        )
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        y = ACTIVATIONS[self.activation](dense(self.hidden, name='fc1')(x))
        return dropout(dense(x.shape[-1], name='fc2')(dropout(y)))
