"""Winograd's minimal filtering for 3 x 3 convolutions of stride 1.

The form is F(2 x 2, 3 x 3) of Lavin and Gray 2015, section 4.1: tiles of 4 x 4 give 2 x 2 outputs.
F(4 x 4, 3 x 3) needs fewer products, but its rounding errors are ten times as large.
`vision.models.cpu.fast` chooses the form and describes the timing.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vision.models.cpu.startup import has_avx512

Pair = tuple[int, int]

# Minimum number of input and output channels. Winograd's form needs 16 multiplications instead of
# 36, but its 4 x 4 transforms move four times the data. The kernel's gradient needs more channels,
# since its matrices are long and thin on large maps. Times in ms, forward and kernel's gradient:
#   64 channels at 56 px: 19 → 16, and 24 → 54;    128 at 28 px: 18.7 → 11.7, and 24 → 14;
#   256 at 14 px: 18.7 → 9.5, and 22 → 11;         512 at 7 px: 21.8 → 12.7, and 23 → 15.
# Without AVX-512 XLA's gradient is slow, and fewer channels suffice (in brackets without oneDNN):
#   64 channels at 56 px: 183 → 93 (231 → 93);     64 at 224 px, batch 4: 1,565 → 333;
#   32 at 14 px, batch 128: 12 → 8 (22 → 7);       32 at 28 px, batch 128: 164 → 40 (458 → 41).
CHANNELS = 64
GRADIENT_CHANNELS = 96 if has_avx512() else 32
# Minimum number of multiplications; below it XLA takes well under a millisecond.
WORK = 10**8

_TILE = 4
# Transforms of the input tiles, the kernel and the output tiles.
_OF_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float)
_OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OF_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float)


def suits(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: Pair,
    padding: Pair,
    dtype: jnp.dtype,
    channels: int,
) -> bool:
    """Returns True if Winograd's form is used; in bfloat16 its transforms would round too much."""
    work = 9 * math.prod(shape) * kernel[-1]
    return (
        kernel[:2] == (3, 3)
        and strides == (1, 1)
        and max(padding) <= 2
        and dtype == jnp.float32
        and min(kernel[2:]) >= channels
        and work >= WORK
    )


@partial(jax.jit, static_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, padding: Pair, transposed: bool = False) -> jax.Array:
    """Convolves with a 3 x 3 kernel at stride 1.

    With `transposed`, the kernel is [3, 3, K, C] rotated by 180°. Matrix products accept a matrix
    in either orientation, whereas swapping the axes of a kernel of 512 x 512 channels takes 50 ms.
    """
    batch, features = x.shape[0], kernel.shape[2 if transposed else 3]
    h, w = (n + 2 * p - 2 for n, p in zip(x.shape[1:3], padding, strict=True))
    tiles = (batch, -(-h // 2), -(-w // 2), features)
    # Transform input and kernel.
    inputs = _input_tiles(x, padding)
    taps = [kernel[i, j] for i in range(3) for j in range(3)]
    if transposed:
        taps.reverse()
    multiply = partial(lax.dot_general, dimension_numbers=(((1,), (int(transposed),)), ((), ())))
    kernels = [_combine(np.outer(a, b).ravel(), taps) for a in _OF_KERNEL for b in _OF_KERNEL]
    # Multiply: one matrix product for each of the 16 values of a tile.
    products = [multiply(x, k).reshape(tiles) for x, k in zip(inputs, kernels, strict=True)]
    # Transform the products to 2 x 2 outputs.
    columns = [products[j::_TILE] for j in range(_TILE)]
    rows = []
    for a in _OF_OUTPUT:
        halves = [_combine(a, column) for column in columns]
        rows.append(jnp.stack([_combine(b, halves) for b in _OF_OUTPUT], 3))
    y = jnp.stack(rows, 2)  # [B, tiles, 2, tiles, 2, K]
    return y.reshape(batch, 2 * tiles[1], 2 * tiles[2], features)[:, :h, :w]


@partial(jax.jit, static_argnums=2)
def kernel_gradient(x: jax.Array, gradient: jax.Array, padding: Pair) -> jax.Array:
    """Transpose of `convolve` with respect to its kernel: [3, 3, C, K]."""
    h, w, features = gradient.shape[1:]
    gradient = jnp.pad(gradient, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    # The transposed steps of `convolve`, in reverse order.
    rows = [gradient[:, i::2] for i in range(2)]
    outputs = []
    for a in _OF_OUTPUT.T:
        row = _combine(a, rows)
        columns = [row[:, :, j::2] for j in range(2)]
        outputs += [_combine(b, columns).reshape(-1, features) for b in _OF_OUTPUT.T]
    inputs = _input_tiles(x, padding)
    products = [x.T @ y for x, y in zip(inputs, outputs, strict=True)]
    kernel = [
        _combine(np.outer(a, b).ravel(), products) for a in _OF_KERNEL.T for b in _OF_KERNEL.T
    ]
    return jnp.stack(kernel).reshape(3, 3, x.shape[-1], features)


def _input_tiles(x: jax.Array, padding: Pair) -> list[jax.Array]:
    """Returns the 16 values of each transformed tile of [B, H, W, C], each [tiles, C]."""
    channels = x.shape[-1]
    counts = [-(-(n + 2 * p - 2) // 2) for n, p in zip(x.shape[1:3], padding, strict=True)]
    pads = [
        (p, 2 * count + 2 - n - p)
        for n, p, count in zip(x.shape[1:3], padding, counts, strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows = [x[:, i : i + 2 * counts[0] : 2] for i in range(_TILE)]
    values = []
    for a in _OF_INPUT:
        row = _combine(a, rows)
        columns = [row[:, :, j : j + 2 * counts[1] : 2] for j in range(_TILE)]
        values += [_combine(b, columns).reshape(-1, channels) for b in _OF_INPUT]
    return values


def _combine(weights: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns the weighted sum of arrays, without the terms that are zero."""
    terms = [x if w == 1 else x * float(w) for w, x in zip(weights, arrays, strict=True) if w]
    return sum(terms[1:], start=terms[0])
