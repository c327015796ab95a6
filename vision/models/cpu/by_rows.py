"""A convolution's kernel gradient as matrix products, a row of the kernel's taps at a time.

For CPUs without AVX-512, where XLA's own runs at 6 to 30 GFLOP/s once the map is large, with oneDNN or without; `vision.models.cpu.fast`
decides where it is used. Two cores of an AMD EPYC with 256-bit vectors, batch 16, milliseconds on JAX 0.12 with oneDNN (on
0.10 without), 2026-11-26: 7 x 7 stride 2, 3 to 64 channels, 224 px: 179 for 357 (158 for 569); 5 x 5, 64 to 192, 27 px,
batch 32: 241 for 600 (217 for 1,090); 3 x 3 stride 2, 128 to 256, 28 px: 23 for 36 (20 for 45). To 16 or 32 channels XLA's is the faster
one: 10 for 32 ms at 16 px, batch 128.
"""

import jax
import jax.numpy as jnp
from jax import lax

from vision.models.cpu.processor import has_avx512

Pair = tuple[int, int]

FEATURES = 64


def suits_gradient(kernel: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether the gradient of a kernel [h, w, C, K] is computed so."""
    return not has_avx512() and kernel[3] >= FEATURES and dtype == jnp.float32


def kernel_gradient(
    x: jax.Array, shape: tuple[int, ...], gradient: jax.Array, strides: Pair, padding: Pair
) -> jax.Array:
    """The gradient [h, w, C, K] of the kernel, of x [B, H, W, C] and of gradients [B, H', W', K].

    What the w taps of a row see of the image is laid side by side once, for all h rows.
    """
    h, w, channels, features = shape
    height, width = gradient.shape[1:3]
    x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    taps = [x[:, :, j : j + strides[1] * (width - 1) + 1 : strides[1]] for j in range(w)]
    # Without the barrier each product would gather them again.
    taps = lax.optimization_barrier(jnp.concatenate(taps, -1))
    rows = [taps[:, i : i + strides[0] * (height - 1) + 1 : strides[0]] for i in range(h)]
    gradient = gradient.reshape(-1, features)
    products = [row.reshape(-1, w * channels).T @ gradient for row in rows]
    return jnp.stack(products).reshape(shape)
