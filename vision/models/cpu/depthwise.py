"""Depthwise convolutions as sums of shifted products.

XLA's depthwise convolution computes one channel at a time. These are the times of the forward pass,
as "XLA → this form" in milliseconds, batch 4:

    112 px, 32 channels, 3 x 3            77 → 1.6
    56 px, 144 channels, 5 x 5 stride 2   29 → 1.3
    28 px, 240 channels, 5 x 5            59 → 2.6
    14 px, 480 channels, 3 x 3            20 → 0.7

They are medians of 9 calls on two quiet cores of an AMD EPYC without AVX-512, JAX 0.10.2,
2026-11-28. Gradients were not timed.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]


def suits(x: jax.Array, kernel: jax.Array, groups: int) -> bool:
    """Returns True for a depthwise convolution (one kernel per channel) in float32."""
    channels = x.shape[-1]
    return groups == channels == kernel.shape[3] > 1 and x.dtype == jnp.float32


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, strides: Pair, sides: Sides) -> jax.Array:
    """Convolves each channel of [B, H, W, C] separately with a kernel [h, w, 1, C]."""
    return _sum_of_products(_pad(x, sides), kernel, strides)


def _forward(x: jax.Array, kernel: jax.Array, strides: Pair, sides: Sides) -> tuple:
    return convolve(x, kernel, strides, sides), (x, kernel)


def _backward(strides: Pair, sides: Sides, residuals: tuple, gradient: jax.Array) -> tuple:
    x, kernel = residuals
    # Input gradient: insert zeros between the strided positions of the output gradient, and
    # convolve it with the kernel rotated by 180°.
    pads = []
    for axis, stride in enumerate(strides):
        before = kernel.shape[axis] - 1 - sides[axis][0]
        spread = (gradient.shape[axis + 1] - 1) * stride + 1
        after = x.shape[axis + 1] + kernel.shape[axis] - 1 - spread - before
        pads.append((before, after, stride - 1))
    zero = jnp.zeros((), gradient.dtype)
    around = lax.pad(gradient, zero, [(0, 0, 0), *pads, (0, 0, 0)])
    of_x = _sum_of_products(around, kernel[::-1, ::-1], (1, 1))
    # Kernel gradient: for each tap, a sum over images and positions.
    taps = _taps(_pad(x, sides), kernel.shape, gradient.shape, strides)
    of_kernel = jnp.stack([jnp.einsum('bhwc,bhwc->c', tap, gradient) for tap in taps])
    return of_x, of_kernel.reshape(kernel.shape)


convolve.defvjp(_forward, _backward)


def _pad(x: jax.Array, sides: Sides) -> jax.Array:
    return jnp.pad(x, ((0, 0), *sides, (0, 0)))


def _sum_of_products(x: jax.Array, kernel: jax.Array, strides: Pair) -> jax.Array:
    size = [
        (n - k) // s + 1 for n, k, s in zip(x.shape[1:3], kernel.shape[:2], strides, strict=True)
    ]
    taps = _taps(x, kernel.shape, (len(x), *size, x.shape[3]), strides)
    products = [tap * k for tap, k in zip(taps, kernel.reshape(len(taps), -1), strict=True)]
    return sum(products[1:], products[0])


def _taps(
    x: jax.Array, kernel: tuple[int, ...], shape: tuple[int, ...], strides: Pair
) -> list[jax.Array]:
    """Returns the pixels that each tap of the kernel multiplies, in the output's shape."""
    # The barrier stores the padded image, so that the products need no checks for padding.
    x = lax.optimization_barrier(x)
    (batch, h, w, channels), (sy, sx) = shape, strides
    last = (sy * (h - 1) + 1, sx * (w - 1) + 1)
    # Tracing lax.slice is faster than tracing indexing, and a network has hundreds of slices.
    return [
        lax.slice(x, (0, i, j, 0), (batch, i + last[0], j + last[1], channels), (1, sy, sx, 1))
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
