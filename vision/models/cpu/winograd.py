"""Winograd's minimal filtering for 3 x 3 convolutions of stride 1, and its choice by shape.

F(2 x 2, 3 x 3), after Lavin and Gray 2015, section 4.1: tiles of 4 x 4 give 2 x 2 outputs. F(4 x 4, 3 x 3)
needs fewer products still, but rounds ten times as coarsely. `vision.models.cpu.fast` says what was
measured on, and decides where it is used.
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

# Winograd's product costs 16 multiplications where the definition has 36, but its 4 x 4 transforms
# move four times the data: it needs this many channels on both sides, and in the kernel's gradient,
# whose products are long and thin on large maps, more.
# 64 channels at 56 px: 16 for 19 ms forward, but 54 for 24 ms in the kernel's gradient;
# 128 at 28 px: 11.7 for 18.7 and 14 for 24; 256 at 14 px: 9.5 for 18.7 and 11 for 22;
# 512 at 7 px: 12.7 for 21.8 and 15 for 23.
# Without AVX-512 XLA's gradient is the slow one: 64 channels at 56 px 93 for 183 ms (93 for 231 without oneDNN), 64 at
# 224 px, batch 4: 333 for 1,565; 32 channels, batch 128, at 14 px 8 for 12 (7 for 22), at 28 px 40 for 164 (41 for 458).
CHANNELS = 64
GRADIENT_CHANNELS = 96 if has_avx512() else 32
# Multiplications below which XLA's form takes well under a millisecond: nothing to gain.
WORK = 10**8

_TILE = 4
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
    """True if this convolution is done by Winograd; in bfloat16 its transforms would round."""
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
    """Convolves with a 3 x 3 kernel, stride 1; `transposed`: with the kernel [3, 3, K, C] turned by half.

    Products take a matrix either way round; to swap the axes of a kernel of 512 to 512 channels takes 50 ms.
    """
    batch, features = x.shape[0], kernel.shape[2 if transposed else 3]
    h, w = (n + 2 * p - 2 for n, p in zip(x.shape[1:3], padding, strict=True))
    tiles = (batch, -(-h // 2), -(-w // 2), features)
    inputs = _input_tiles(x, padding)
    taps = [kernel[i, j] for i in range(3) for j in range(3)]
    if transposed:
        taps.reverse()
    multiply = partial(lax.dot_general, dimension_numbers=(((1,), (int(transposed),)), ((), ())))
    kernels = [_combine(np.outer(a, b).ravel(), taps) for a in _OF_KERNEL for b in _OF_KERNEL]
    products = [multiply(x, k).reshape(tiles) for x, k in zip(inputs, kernels, strict=True)]
    columns = [products[j::_TILE] for j in range(_TILE)]
    rows = []
    for a in _OF_OUTPUT:
        halves = [_combine(a, column) for column in columns]
        rows.append(jnp.stack([_combine(b, halves) for b in _OF_OUTPUT], 3))
    y = jnp.stack(rows, 2)  # [B, tiles, 2, tiles, 2, K]
    return y.reshape(batch, 2 * tiles[1], 2 * tiles[2], features)[:, :h, :w]


@partial(jax.jit, static_argnums=2)
def kernel_gradient(x: jax.Array, gradient: jax.Array, padding: Pair) -> jax.Array:
    """The transpose of `convolve` in its kernel: [3, 3, C, K]."""
    h, w, features = gradient.shape[1:]
    gradient = jnp.pad(gradient, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
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
    """[B, H, W, C] -> the 16 values of each transformed tile, [tiles, C] each."""
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
    """The weighted sum of some arrays, without the terms that are zero."""
    terms = [x if w == 1 else x * float(w) for w, x in zip(weights, arrays, strict=True) if w]
    return sum(terms[1:], start=terms[0])
