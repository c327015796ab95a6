"""Forms of convolution and max-pooling that are faster than XLA's own on CPUs; elsewhere XLA's are used.

The results are those of `lax`, and so are the gradients, up to the rounding of another order of
sums. Each is chosen by shape and type when a program is traced. What was measured stands beside the
choice: two cores of an AMD EPYC with AVX-512, JAX 0.12 with oneDNN (see `vision.core.startup`),
batch 16, 2026-11-25. `VISION_FAST=0` in the environment leaves everything to XLA.

Images are [B, H, W, C], kernels [h, w, C, K]. Only reverse-mode differentiation is defined, once.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Pair = tuple[int, int]
_LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# Winograd's product costs 16 multiplications where the definition has 36, but its 4 x 4 transforms
# move four times the data: it needs this many channels on both sides, and in the kernel's gradient,
# whose products are long and thin on large maps, more.
# 64 channels at 56 px: 16 for 19 ms forward, but 54 for 24 ms in the kernel's gradient;
# 128 at 28 px: 11.7 for 18.7 and 14 for 24; 256 at 14 px: 9.5 for 18.7 and 11 for 22;
# 512 at 7 px: 12.7 for 21.8 and 15 for 23.
_WINOGRAD_CHANNELS = 64
_WINOGRAD_GRADIENT_CHANNELS = 96
# Multiplications below which XLA's form takes well under a millisecond: nothing to gain.
_WINOGRAD_WORK = 10**8

_enabled = os.environ.get('VISION_FAST', '1') != '0'


def enabled() -> bool:
    """Whether programs that are traced now get the fast forms."""
    return _enabled and jax.default_backend() == 'cpu'


@contextmanager
def switched_off() -> Iterator[None]:
    """Leaves what is traced within to XLA: programs for other machines, programs that are counted."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair = (1, 1), padding: Pair = (0, 0), groups: int = 1
) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C / groups, K], `padding` pixels on either side.

    XLA's own is as fast as any that was tried for several groups.
    """
    if enabled() and groups == 1 and x.dtype in (jnp.float32, jnp.bfloat16):
        return _convolve(x, kernel, strides, padding)
    return _xla(x, kernel, strides, [(p, p) for p in padding], groups)


def max_pool(
    x: jax.Array, window: int, strides: int, padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """Largest value in each window of [B, H, W, C], `padding` (before, after) in height and width."""
    if enabled() and window <= 11 and jnp.issubdtype(x.dtype, jnp.floating):
        return _max_pool(x, x.shape[1:3], window, strides, tuple(padding))
    return _pool(x, window, strides, padding)


def _xla(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    padding: Sequence[tuple[int, int]],
    groups: int = 1,
) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pair) -> jax.Array:
    if kernel.shape[:2] == (1, 1) and padding == (0, 0) and x.dtype == jnp.float32:
        # A matrix product. 1024 to 256 channels at 14 px: 8.3 for 9.2 ms (without oneDNN 8 for 11;
        # 256 to 64 at 56 px: 9 for 23). In bfloat16 the convolution is the faster one.
        return _strided(x, strides) @ kernel[0, 0]
    if _is_winograd(x.shape, kernel.shape, strides, padding, x.dtype, _WINOGRAD_CHANNELS):
        return _winograd(x, kernel, padding)
    return _xla(x, kernel, strides, [(p, p) for p in padding])


def _forward(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pair) -> tuple:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides: Pair, padding: Pair, residuals: tuple, gradient: jax.Array) -> tuple:
    x, kernel = residuals
    return (
        _input_gradient(x.shape, kernel, gradient, strides, padding),
        _kernel_gradient(x, kernel.shape, gradient, strides, padding),
    )


_convolve.defvjp(_forward, _backward)


def _input_gradient(
    shape: tuple[int, ...], kernel: jax.Array, gradient: jax.Array, strides: Pair, padding: Pair
) -> jax.Array:
    height, width = kernel.shape[:2]
    if (height, width) == (1, 1) and padding == (0, 0) and gradient.dtype == jnp.float32:
        return _spread(gradient @ kernel[0, 0].T, shape, strides)
    plain = max(height, width) == 1 or height <= padding[0] or width <= padding[1]
    if plain or max(strides) > min(height, width):
        convolution = partial(_xla, strides=strides, padding=[(p, p) for p in padding])
        like = jax.ShapeDtypeStruct(shape, gradient.dtype)
        return jax.linear_transpose(lambda x: convolution(x, kernel), like)(gradient)[0]
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    if strides != (1, 1):
        return _by_phases(shape, flipped, gradient, strides, padding)
    around = (height - 1 - padding[0], width - 1 - padding[1])
    if _is_winograd(
        gradient.shape, flipped.shape, strides, around, gradient.dtype, _WINOGRAD_CHANNELS
    ):
        return _winograd(gradient, flipped, around)
    # XLA would fold the flip into a convolution that oneDNN does not take: in bfloat16 180 GFLOP/s
    # where it makes 450.
    return _xla(gradient, lax.optimization_barrier(flipped), (1, 1), [(p, p) for p in around])


def _kernel_gradient(
    x: jax.Array, shape: tuple[int, ...], gradient: jax.Array, strides: Pair, padding: Pair
) -> jax.Array:
    height, width, channels, features = shape
    if (height, width) == (1, 1) and padding == (0, 0):
        # XLA's form is 43 GFLOP/s at 56 px and 57 at 14; the product 158 and 192.
        positions = _strided(x, strides).reshape(-1, channels)
        return (positions.T @ gradient.reshape(-1, features))[None, None]
    if _is_winograd(x.shape, shape, strides, padding, x.dtype, _WINOGRAD_GRADIENT_CHANNELS):
        return _winograd_kernel_gradient(x, gradient, padding)
    convolution = partial(_xla, strides=strides, padding=[(p, p) for p in padding])
    like = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda kernel: convolution(x, kernel), like)(gradient)[0]


def _strided(x: jax.Array, strides: Pair) -> jax.Array:
    return x if strides == (1, 1) else x[:, :: strides[0], :: strides[1]]


def _spread(x: jax.Array, shape: tuple[int, ...], strides: Pair) -> jax.Array:
    """The transpose of `_strided`: zeros between the values, up to `shape`."""
    if strides == (1, 1):
        return x
    (h, w), (height, width) = x.shape[1:3], shape[1:3]
    after = [n - 1 - (m - 1) * s for n, m, s in zip((height, width), (h, w), strides, strict=True)]
    zero = jnp.zeros((), x.dtype)
    inner = [(0, a, s - 1) for a, s in zip(after, strides, strict=True)]
    return lax.pad(x, zero, [(0, 0, 0), *inner, (0, 0, 0)])


@partial(jax.jit, static_argnums=(0, 3, 4))
def _by_phases(
    shape: tuple[int, ...], flipped: jax.Array, gradient: jax.Array, strides: Pair, padding: Pair
) -> jax.Array:
    """The input gradient of a strided convolution, one convolution for each residue of the position.

    XLA multiplies with the zeros that it puts between the positions: 12 for 15 ms at 56 px, 64 to
    128 channels; in bfloat16 4.4 for 11.2 at 28 px, 128 to 256.

    Args:
      shape: of the input, [B, H, W, C].
      flipped: the kernel, turned by half, [h, w, K, C].
    """
    phases = [
        [_taps(flipped.shape[axis], shape[axis + 1], s, padding[axis], r) for r in range(s)]
        for axis, s in enumerate(strides)
    ]
    lines = []
    for rows, before_y, positions_y in phases[0]:
        line = []
        for columns, before_x, positions_x in phases[1]:
            part = lax.optimization_barrier(flipped[rows, columns])
            pads = [
                (before, positions + part.shape[axis] - 1 - before - gradient.shape[axis + 1])
                for axis, (before, positions) in enumerate(
                    [(before_y, positions_y), (before_x, positions_x)]
                )
            ]
            line.append(_xla(gradient, part, (1, 1), pads))
        lines.append(jnp.stack(line, 3))
    x = jnp.stack(lines, 2)
    batch, h, _, w, _, channels = x.shape
    x = x.reshape(batch, h * strides[0], w * strides[1], channels)
    return x[:, : shape[1], : shape[2]]


def _taps(size: int, length: int, stride: int, padding: int, residue: int) -> tuple:
    """Which taps of a flipped kernel the positions of one residue meet.

    Returns:
      Their slice, the padding before the gradient, and the number of positions.
    """
    # Position stride * u + residue gets tap i of output u + (residue + padding - i) / stride.
    taps = [i for i in range(size) if (residue + padding - i) % stride == 0]
    last = taps[-1]
    before = -((residue + padding - last) // stride)
    return slice(size - 1 - last, size - taps[0], stride), before, -(-length // stride)


# Winograd's minimal filtering F(2 x 2, 3 x 3), after Lavin and Gray 2015, section 4.1: tiles of 4 x 4
# give 2 x 2 outputs. F(4 x 4, 3 x 3) needs fewer products still, but rounds ten times as coarsely.
_TILE = 4
_OF_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float)
_OF_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OF_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float)


def _is_winograd(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: Pair,
    padding: Pair,
    dtype: jnp.dtype,
    channels: int,
) -> bool:
    """Whether this convolution is done by Winograd; in bfloat16 its transforms would round."""
    work = 9 * math.prod(shape) * kernel[-1]
    return (
        kernel[:2] == (3, 3)
        and strides == (1, 1)
        and max(padding) <= 2
        and dtype == jnp.float32
        and min(kernel[2:]) >= channels
        and work >= _WINOGRAD_WORK
    )


@partial(jax.jit, static_argnums=2)
def _winograd(x: jax.Array, kernel: jax.Array, padding: Pair) -> jax.Array:
    """Convolves with a 3 x 3 kernel, stride 1."""
    batch, features = x.shape[0], kernel.shape[-1]
    h, w = (n + 2 * p - 2 for n, p in zip(x.shape[1:3], padding, strict=True))
    tiles = (batch, -(-h // 2), -(-w // 2), features)
    inputs = _input_tiles(x, padding)
    taps = [kernel[i, j] for i in range(3) for j in range(3)]
    kernels = [_combine(np.outer(a, b).ravel(), taps) for a in _OF_KERNEL for b in _OF_KERNEL]
    products = [(x @ k).reshape(tiles) for x, k in zip(inputs, kernels, strict=True)]
    columns = [products[j::_TILE] for j in range(_TILE)]
    rows = []
    for a in _OF_OUTPUT:
        halves = [_combine(a, column) for column in columns]
        rows.append(jnp.stack([_combine(b, halves) for b in _OF_OUTPUT], 3))
    y = jnp.stack(rows, 2)  # [B, tiles, 2, tiles, 2, K]
    return y.reshape(batch, 2 * tiles[1], 2 * tiles[2], features)[:, :h, :w]


@partial(jax.jit, static_argnums=2)
def _winograd_kernel_gradient(x: jax.Array, gradient: jax.Array, padding: Pair) -> jax.Array:
    """The transpose of `_winograd` in its kernel: [3, 3, C, K]."""
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


def _pool(x: jax.Array, window: int, strides: int, padding: Sequence[tuple[int, int]]) -> jax.Array:
    sides = [(0, 0), *padding, (0, 0)]
    sizes = (1, window, window, 1), (1, strides, strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, *sizes, sides)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(
    x: jax.Array, size: Pair, window: int, strides: int, padding: tuple[Pair, Pair]
) -> jax.Array:
    return lax.optimization_barrier(_largest(x, window, strides, padding)[0])


def _max_pool_forward(
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


def _max_pool_backward(
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


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
