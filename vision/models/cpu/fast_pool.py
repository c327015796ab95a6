"""Max-pooling that remembers which value of a window was the largest: its gradient need not search again.

For CPUs; `vision.models.cpu.fast` decides where it is used.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from vision.models.cpu.startup import has_avx512

Pair = tuple[int, int]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def max_pool(
    x: jax.Array, size: Pair, window: int, strides: int, padding: tuple[Pair, Pair]
) -> jax.Array:
    """Largest value in each window of [B, *size, C], `padding` (before, after) in height and width."""
    return lax.optimization_barrier(_largest(x, window, strides, padding)[0])


def _forward(
    x: jax.Array, size: Pair, window: int, strides: int, padding: tuple[Pair, Pair]
) -> tuple[jax.Array, jax.Array]:
    return lax.optimization_barrier(_largest(x, window, strides, padding))


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """The type that is compared and added in: at least float32, which XLA's loops are made for.

    Left in bfloat16, (112, 112, 64), 3 stride 2, batch 16, takes 151 ms and its gradient 224: 12 and 18 so.
    """
    return jnp.promote_types(dtype, jnp.float32)


def _number(dtype: jnp.dtype) -> jnp.dtype:
    """The type of a winner's number: one byte, but as wide as its gradient without AVX-512.

    There a comparison of bytes does not choose between wider values in one vector. Gradients in float32, batch 16: (112, 112,
    64), 3 stride 2: 23 for 66 ms; (28, 28, 192), 3 stride 1: 4.5 for 20; (28, 28, 6), 2 stride 2, batch 128: 0.35 for 1.0.
    (112, 112, 64), 2 stride 2: 11.5 for 7.8.
    """
    return jnp.int8 if has_avx512() else _wide(dtype)


def _largest(
    x: jax.Array, window: int, strides: int, padding: tuple[Pair, Pair]
) -> tuple[jax.Array, jax.Array]:
    """The largest value of each window, and which of the window's it is: the first of equals."""
    # Behind barriers: fused with their neighbours, the comparisons of one pool are done again for
    # each of those of the next, and compilation never ends.
    dtype, wide = x.dtype, _wide(x.dtype)
    sides = [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)]
    x = lax.pad(x.astype(wide), jnp.array(-jnp.inf, wide), sides)
    x = lax.optimization_barrier(x)
    of_rows = _along(2, x, jnp.zeros(x.shape, _number(dtype)), window, strides, 1)
    if x.shape[3] % 8:  # not whole vectors: 0.7 for 1.3 ms at (28, 28, 6), batch 128
        of_rows = lax.optimization_barrier(of_rows)
    y, winners = _along(1, *of_rows, window, strides, window)
    return y.astype(dtype), winners


def _along(
    axis: int, x: jax.Array, winners: jax.Array, window: int, strides: int, weight: int
) -> tuple[jax.Array, jax.Array]:
    """The largest of each window along one axis, and its winner: its own, plus `weight` for each step."""
    last = (x.shape[axis] - window) // strides * strides

    def part(array: jax.Array, i: int) -> jax.Array:
        return lax.slice_in_dim(array, i, i + last + 1, strides, axis)

    y, number = part(x, 0), part(winners, 0)
    for i in range(1, window):
        other = part(x, i)
        larger = (other > y) | jnp.isnan(other)  # a NaN wins, as in `lax.max`
        y = jnp.where(larger, other, y)
        number = jnp.where(
            larger, part(winners, i) + jnp.asarray(weight * i, winners.dtype), number
        )
    return y, number


def _backward(
    size: Pair,
    window: int,
    strides: int,
    padding: tuple[Pair, Pair],
    winners: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    """Adds each window's gradient at its winner.

    XLA searches every window again: (112, 112, 64), 3 stride 2: 6 for 217 ms; (28, 28, 192), 3 stride
    1: 1 for 106 ms.
    """
    dtype, wide = gradient.dtype, _wide(gradient.dtype)
    (h, w), zero = gradient.shape[1:3], jnp.zeros((), wide)
    winners, gradient = lax.optimization_barrier((winners, gradient.astype(wide)))
    if window == strides and size == (h * window, w * window):  # no pixel is in two windows
        # (28, 28, 6), batch 100: 0.13 for 0.28 ms.
        parts = [jnp.where(winners == i, gradient, zero) for i in range(window**2)]
        rows = [jnp.stack(parts[i : i + window], 3) for i in range(0, window**2, window)]
        spread = jnp.stack(rows, 2)  # [B, h, window, w, window, C]
        spread = spread.reshape(gradient.shape[0], *size, gradient.shape[3])
        return (lax.optimization_barrier(spread.astype(dtype)),)
    lengths = [n + sum(p) for n, p in zip(size, padding, strict=True)]
    total = zero
    for i in range(window):
        for j in range(window):
            won = jnp.where(winners == i * window + j, gradient, zero)
            after = lengths[0] - i - (h - 1) * strides - 1, lengths[1] - j - (w - 1) * strides - 1
            between = strides - 1
            sides = [(0, 0, 0), (i, after[0], between), (j, after[1], between), (0, 0, 0)]
            total += lax.pad(won, zero, sides)
    (top, _), (left, _) = padding
    total = total[:, top : top + size[0], left : left + size[1]]
    return (lax.optimization_barrier(total.astype(dtype)),)


max_pool.defvjp(_forward, _backward)
