"""Fast forms for CPUs; `vision.models.cpu.fast` chooses among them and describes the timing.

Convolution by columns is a matrix product for few channels and stride 1. A block of n adjacent
output positions depends on h rows of n + w − 1 pixels. These are contiguous pieces of the image and
cheap to copy, unlike the patches of single positions (im2col). The matrix of the product contains
the kernel once per position, and zeros elsewhere. For few channels, the multiplications with zero
take less time than XLA's convolution.

The kernel gradient by rows computes one row of taps at a time. It is for CPUs without AVX-512,
where XLA reaches only 6 to 30 GFLOP/s on large maps. Two cores of an AMD EPYC with 256-bit vectors,
batch 16, JAX 0.12 with oneDNN (in brackets JAX 0.10 without it), 2026-11-26: 7 x 7 stride 2, 3 to
64 channels, 224 px: 357 → 179 ms (569 → 158); 5 x 5, 64 to 192, 27 px, batch 32: 600 → 241 (1,090 →
217); 3 x 3 stride 2, 128 to 256, 28 px: 36 → 23 (45 → 20). With 16 or 32 output channels XLA is
faster: 10 instead of 32 ms at 16 px, batch 128.

Max pooling stores the position of each window's maximum, so that the gradient need not search for
it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from vision.models.cpu.startup import has_avx512, has_ynn

Pair = tuple[int, int]

# Numbers of positions in a block, chosen by measurement.
_BLOCK = 4  # best of 2, 4, 7, 8 for most shapes below (for 1 to 32 channels, 2 is a third faster)
_BLOCK_OF_MORE = 2  # for more than 3 channels: best of 2, 4, 5, 7, 10
_SPREAD = 5  # for input gradients: best of 5 and 10


def columns_suit(kernel: tuple[int, ...], strides: Pair, dtype: jnp.dtype) -> bool:
    """Returns True if a convolution is computed by columns.

    32 px, 5 x 5, 1 to 6 channels, batch 100: 0.7 → 0.6 ms (without oneDNN, JAX 0.10: 2.8 → 0.5); 28
    px, 3 x 3, 1 to 16, batch 128: 0.5 → 0.6 (2.8 → 0.7). With 3 input channels, the multiplications
    with zero take as much time as is saved.
    """
    _, _, channels, features = kernel
    return strides == (1, 1) and channels == 1 and features <= 16 and dtype == jnp.float32


def columns_suit_gradient(kernel: tuple[int, ...], strides: Pair, dtype: jnp.dtype) -> bool:
    """Returns True if the kernel's gradient is computed by columns.

    32 px, 5 x 5, 1 to 6 channels, batch 100: 1.3 → 0.5 ms; 32 px, 3 x 3, 3 to 16, batch 128: 4.5 →
    2.4; 28 px, 1 to 32: 5.5 → 1.7; 224 px, 3 to 64, batch 8: 35 → 25. For 5 x 5, 6 to 16 channels,
    batch 128, without AVX-512, a whole step of LeNet-5 takes 14.2 → 12.2 ms on JAX 0.10, but 10.6 →
    11.5 ms on 0.12, which uses YNNPACK for this convolution.
    """
    height, width, channels, _ = kernel
    few = channels <= (8 if min(height, width) >= 5 and not has_ynn() else 3)
    return strides == (1, 1) and few and dtype == jnp.float32


def convolve_by_columns(x: jax.Array, kernel: jax.Array, padding: Pair) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C, K] at stride 1."""
    # The last block of a row may exceed the row: cut the result to the width.
    pieces, (height, width) = _pieces(x, kernel.shape, padding, _BLOCK)
    y = pieces @ _matrix(kernel, _BLOCK)
    return y.reshape(x.shape[0], height, -1, kernel.shape[3])[:, :, :width]


def kernel_gradient_by_columns(
    x: jax.Array, shape: tuple[int, ...], gradient: jax.Array, padding: Pair
) -> jax.Array:
    """Transpose of `convolve_by_columns` with respect to the kernel [h, w, C, K]."""
    block = _BLOCK if shape[2] <= 3 else _BLOCK_OF_MORE
    pieces, (_, width) = _pieces(x, shape, padding, block)
    gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, -width % block), (0, 0)))
    # The transpose of `_matrix` sums over the copies of the kernel.
    product = pieces.T @ gradient.reshape(-1, block * shape[3])
    like = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(partial(_matrix, block=block), like)(product)[0]


def columns_suit_input_gradient(kernel: tuple[int, ...], strides: Pair, dtype: jnp.dtype) -> bool:
    """Returns True if the gradient of an input with few channels is computed by columns.

    Without AVX-512, 14 px, 5 x 5, 6 to 16 channels, batch 128: 2.5 → 1.9 ms (without oneDNN 4.8 →
    1.9). 28 px, 3 x 3, 8 to 8: 1.8 → 6.1.
    """
    height, width, channels, _ = kernel
    return strides == (1, 1) and min(height, width) >= 5 and channels <= 8 and dtype == jnp.float32


def input_gradient_by_columns(
    shape: tuple[int, ...], kernel: jax.Array, gradient: jax.Array, padding: Pair
) -> jax.Array:
    """Transpose of `convolve_by_columns` with respect to the images [B, H, W, C].

    One matrix product spreads the gradient of each block over the h rows of pixels that the block
    depends on.
    """
    h, w, channels, features = kernel.shape
    batch, height, width, _ = gradient.shape
    gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, -width % _SPREAD), (0, 0)))
    spread = gradient.reshape(-1, _SPREAD * features) @ _matrix(kernel, _SPREAD).T
    # Split each block's pixels into parts as long as a block: part j belongs to block + j. Then add
    # the shifted parts.
    step, parts = _SPREAD * channels, -(-(_SPREAD + w - 1) // _SPREAD)
    spread = lax.optimization_barrier(spread.reshape(batch, height, -1, h, spread.shape[1] // h))
    zero = jnp.zeros((), gradient.dtype)
    total = zero
    for i in range(h):
        for j in range(parts):
            part = spread[:, :, :, i, j * step : (j + 1) * step]
            sides = [(i, h - 1 - i, 0), (j, parts - 1 - j, 0), (0, step - part.shape[-1], 0)]
            total += lax.pad(part, zero, [(0, 0, 0), *sides])
    total = total.reshape(batch, height + h - 1, -1, channels)
    (top, left), (_, rows, columns, _) = padding, shape
    return total[:, top : top + rows, left : left + columns]


def _pieces(
    x: jax.Array, kernel: tuple[int, ...], padding: Pair, block: int
) -> tuple[jax.Array, Pair]:
    """Returns each block's pixels [B · H' · blocks, h · (block + w − 1) · C] and (H', W')."""
    (h, w), (top, left) = kernel[:2], padding
    batch, _, _, channels = x.shape
    height, width = x.shape[1] + 2 * top - h + 1, x.shape[2] + 2 * left - w + 1
    x = jnp.pad(x, ((0, 0), (top, top), (left, left + -width % block), (0, 0)))
    x = x.reshape(batch, x.shape[1], -1)  # merge width and channels
    rows = jnp.stack([x[:, i : i + height] for i in range(h)], 2)
    step, length = block * channels, (block + w - 1) * channels
    starts = range(0, width * channels, step)
    pieces = jnp.stack([rows[..., start : start + length] for start in starts], 2)
    return pieces.reshape(-1, h * length), (height, width)


def _matrix(kernel: jax.Array, block: int) -> jax.Array:
    """Returns the matrix [h · (block + w − 1) · C, block · K] of a kernel [h, w, C, K].

    Block j of the columns contains the kernel shifted by j pixels.
    """
    h, w, channels, features = kernel.shape
    matrix = jnp.zeros((h, block + w - 1, channels, block, features), kernel.dtype)
    for j in range(block):
        matrix = matrix.at[:, j : j + w, :, j].set(kernel)
    return matrix.reshape(-1, block * features)


# Minimum number of output channels of the kernel gradient by rows.
FEATURES = 64


def rows_suit_gradient(kernel: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Returns True if the gradient of a kernel [h, w, C, K] is computed by rows."""
    return not has_avx512() and kernel[3] >= FEATURES and dtype == jnp.float32


def kernel_gradient_by_rows(
    x: jax.Array, shape: tuple[int, ...], gradient: jax.Array, strides: Pair, padding: Pair
) -> jax.Array:
    """Computes the gradient of a kernel [h, w, C, K] from x [B, H, W, C] and [B, H', W', K].

    The pixels of the w taps in a row are gathered once and used for all h rows.
    """
    h, w, channels, features = shape
    height, width = gradient.shape[1:3]
    x = jnp.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    taps = [x[:, :, j : j + strides[1] * (width - 1) + 1 : strides[1]] for j in range(w)]
    # Without the barrier XLA would gather the pixels again for each product.
    taps = lax.optimization_barrier(jnp.concatenate(taps, -1))
    rows = [taps[:, i : i + strides[0] * (height - 1) + 1 : strides[0]] for i in range(h)]
    gradient = gradient.reshape(-1, features)
    products = [row.reshape(-1, w * channels).T @ gradient for row in rows]
    return jnp.stack(products).reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def max_pool(
    x: jax.Array, size: Pair, window: int, strides: int, padding: tuple[Pair, Pair]
) -> jax.Array:
    """Max pooling of [B, *size, C], with `padding` (before, after) in height and width."""
    return lax.optimization_barrier(_largest(x, window, strides, padding)[0])


def _pool_forward(
    x: jax.Array, size: Pair, window: int, strides: int, padding: tuple[Pair, Pair]
) -> tuple[jax.Array, jax.Array]:
    """Forward pass that keeps the position of each maximum."""
    return lax.optimization_barrier(_largest(x, window, strides, padding))


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type for comparisons and sums: at least float32, for which XLA has fast loops.

    (112, 112, 64), 3 stride 2, batch 16 in bfloat16: 151 → 12 ms, and the gradient 224 → 18.
    """
    return jnp.promote_types(dtype, jnp.float32)


def _number(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the type of a maximum's position: int8 with AVX-512, else one as wide as the values.

    Without AVX-512 a comparison of bytes cannot select among wider values in one vector. Gradients
    in float32, batch 16: (112, 112, 64), 3 stride 2: 66 → 23 ms; (28, 28, 192), 3 stride 1: 20 →
    4.5; (28, 28, 6), 2 stride 2, batch 128: 1.0 → 0.35; (112, 112, 64), 2 stride 2: 7.8 → 11.5.
    """
    return jnp.int8 if has_avx512() else _wide(dtype)


def _largest(
    x: jax.Array, window: int, strides: int, padding: tuple[Pair, Pair]
) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each window and its (first) position in the window."""
    # Without barriers, XLA would fuse successive pools and repeat the comparisons of the first for
    # each comparison of the second. The compilation would never end.
    dtype, wide = x.dtype, _wide(x.dtype)
    sides = [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)]
    x = lax.pad(x.astype(wide), jnp.array(-jnp.inf, wide), sides)
    x = lax.optimization_barrier(x)
    of_rows = _along(2, x, jnp.zeros(x.shape, _number(dtype)), window, strides, 1)
    if x.shape[3] % 8:  # channels do not fill vectors: 1.3 → 0.7 ms at (28, 28, 6), batch 128
        of_rows = lax.optimization_barrier(of_rows)
    y, winners = _along(1, *of_rows, window, strides, window)
    return y.astype(dtype), winners


def _along(
    axis: int, x: jax.Array, winners: jax.Array, window: int, strides: int, weight: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each window along one axis, and its position.

    The position is the one along the preceding axis, plus `weight` for each step along this axis.
    """
    last = (x.shape[axis] - window) // strides * strides

    def part(array: jax.Array, i: int) -> jax.Array:
        return lax.slice_in_dim(array, i, i + last + 1, strides, axis)

    # Compare the window's positions one after the other.
    y, number = part(x, 0), part(winners, 0)
    for i in range(1, window):
        other = part(x, i)
        larger = (other > y) | jnp.isnan(other)  # a NaN wins, as in `lax.max`
        y = jnp.where(larger, other, y)
        number = jnp.where(
            larger, part(winners, i) + jnp.asarray(weight * i, winners.dtype), number
        )
    return y, number


def _pool_backward(
    size: Pair,
    window: int,
    strides: int,
    padding: tuple[Pair, Pair],
    winners: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    """Adds each window's gradient at the position of its maximum.

    XLA searches every window again: (112, 112, 64), 3 stride 2: 217 → 6 ms; (28, 28, 192), 3 stride
    1: 106 → 1 ms.
    """
    dtype, wide = gradient.dtype, _wide(gradient.dtype)
    (h, w), zero = gradient.shape[1:3], jnp.zeros((), wide)
    winners, gradient = lax.optimization_barrier((winners, gradient.astype(wide)))
    if window == strides and size == (h * window, w * window):
        # Windows do not overlap, so no sums are needed. (28, 28, 6), batch 100: 0.28 → 0.13 ms.
        parts = [jnp.where(winners == i, gradient, zero) for i in range(window**2)]
        rows = [jnp.stack(parts[i : i + window], 3) for i in range(0, window**2, window)]
        spread = jnp.stack(rows, 2)  # [B, h, window, w, window, C]
        spread = spread.reshape(gradient.shape[0], *size, gradient.shape[3])
        return (lax.optimization_barrier(spread.astype(dtype)),)
    # Windows overlap: for each position, pad its gradients to the size of the input and add them.
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


max_pool.defvjp(_pool_forward, _pool_backward)
