"""Max-pooling that remembers which value of a window was the largest: its gradient need not search again.

For CPUs; `vision.models.fast` decides where it is used.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

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


def _largest(
    x: jax.Array, window: int, strides: int, padding: tuple[Pair, Pair]
) -> tuple[jax.Array, jax.Array]:
    """The largest value of each window, and which of the window's it is, int8: the first of equals."""
    # Behind barriers: fused with their neighbours, the comparisons of one pool are done again for
    # each of those of the next, and compilation never ends.
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = lax.optimization_barrier(
        lax.pad(x, lowest, [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])
    )
    h, w = ((n - window) // strides + 1 for n in x.shape[1:3])

    def part(i: int, j: int) -> jax.Array:
        bottom, right = i + (h - 1) * strides + 1, j + (w - 1) * strides + 1
        return x[:, i:bottom:strides, j:right:strides]

    y = part(0, 0)
    winners = jnp.zeros(y.shape, jnp.int8)
    for index in range(1, window**2):
        other = part(*divmod(index, window))
        larger = (other > y) | jnp.isnan(other)  # a NaN wins, as in `lax.max`
        y = jnp.where(larger, other, y)
        winners = jnp.where(larger, jnp.int8(index), winners)
    return y, winners


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
    (h, w), zero = gradient.shape[1:3], jnp.zeros((), gradient.dtype)
    winners, gradient = lax.optimization_barrier((winners, gradient))
    if window == strides and size == (h * window, w * window):  # no pixel is in two windows
        # (28, 28, 6), batch 100: 0.13 for 0.28 ms.
        parts = [jnp.where(winners == i, gradient, zero) for i in range(window**2)]
        rows = [jnp.stack(parts[i : i + window], 3) for i in range(0, window**2, window)]
        spread = jnp.stack(rows, 2)  # [B, h, window, w, window, C]
        spread = spread.reshape(gradient.shape[0], *size, gradient.shape[3])
        return (lax.optimization_barrier(spread),)
    lengths = [n + sum(p) for n, p in zip(size, padding, strict=True)]
    total = jnp.zeros((), gradient.dtype)
    for i in range(window):
        for j in range(window):
            won = jnp.where(winners == i * window + j, gradient, zero)
            after = lengths[0] - i - (h - 1) * strides - 1, lengths[1] - j - (w - 1) * strides - 1
            between = strides - 1
            sides = [(0, 0, 0), (i, after[0], between), (j, after[1], between), (0, 0, 0)]
            total += lax.pad(won, zero, sides)
    (top, _), (left, _) = padding
    total = total[:, top : top + size[0], left : left + size[1]]
    return (lax.optimization_barrier(total),)


max_pool.defvjp(_forward, _backward)
