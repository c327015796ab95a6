"""Convolutions of images of few channels, stride 1: as matrix products, or two columns at a time.

A row of `_BLOCK` output positions sees h rows of `_BLOCK` + w − 1 pixels: contiguous pieces of the
image, which are cheap to lay side by side, where the patches of single positions (im2col) are not.
The product's matrix has the kernel once for each position, between zeros: of few channels, the
multiplications with zero cost less than XLA's convolution does. For CPUs; `vision.models.fast` says
what was measured on, and decides where it is used.
"""

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]

_BLOCK = (
    4  # of 2, 4, 7 and 8 the best for most of the shapes below (1 to 32 channels: 2, by a third)
)


def suits(kernel: tuple[int, ...], strides: Pair, dtype: jnp.dtype) -> bool:
    """Whether a convolution is computed so.

    Without oneDNN (JAX 0.10) 32 px, 5 x 5, 1 to 6 channels, batch 100: 0.5 for 2.8 ms (with it 0.6
    for 0.7); 28 px, 3 x 3, 1 to 16, batch 128: 0.7 for 2.8 (0.6 for 0.5). With 3 channels the
    multiplications with zero weigh as much as what is gained.
    """
    _, _, channels, features = kernel
    return strides == (1, 1) and channels == 1 and features <= 16 and dtype == jnp.float32


def suits_gradient(kernel: tuple[int, ...], strides: Pair, dtype: jnp.dtype) -> bool:
    """Whether the kernel's gradient is computed so.

    32 px, 5 x 5, 1 to 6 channels, batch 100: 0.5 for 1.3 ms; 32 px, 3 x 3, 3 to 16, batch 128: 2.4 for
    4.5; 28 px, 1 to 32: 1.7 for 5.5; 224 px, 3 to 64, batch 8: 25 for 35. 6 to 16 channels: slower.
    """
    return strides == (1, 1) and kernel[2] <= 3 and dtype == jnp.float32


def convolve(x: jax.Array, kernel: jax.Array, padding: Pair) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C, K], stride 1."""
    pieces, (height, width) = _pieces(x, kernel.shape, padding)
    y = pieces @ _matrix(kernel)
    return y.reshape(x.shape[0], height, -1, kernel.shape[3])[:, :, :width]


def kernel_gradient(
    x: jax.Array, shape: tuple[int, ...], gradient: jax.Array, padding: Pair
) -> jax.Array:
    """The transpose of `convolve` in its kernel, [h, w, C, K], of gradients [B, H', W', K]."""
    pieces, (_, width) = _pieces(x, shape, padding)
    gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, -width % _BLOCK), (0, 0)))
    product = pieces.T @ gradient.reshape(-1, _BLOCK * shape[3])
    like = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(_matrix, like)(product)[0]


def suits_pairs(
    x: tuple[int, ...], kernel: tuple[int, ...], padding: Pair, dtype: jnp.dtype
) -> bool:
    """Whether a convolution to few channels, such as an input gradient, is done by pairs of columns.

    Without oneDNN 10 px, 5 x 5, 16 to 6 channels, batch 100: 1.4 for 2.4 ms (with it the same, 1.0).
    """
    width = x[2] + 2 * padding[1] - kernel[1] + 1
    even = x[2] % 2 == 0 and width % 2 == 0
    return even and kernel[1] > 1 and kernel[3] <= 8 and dtype == jnp.float32


def convolve_pairs(x: jax.Array, kernel: jax.Array, padding: Pair) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C, K], stride 1, as W / 2 columns of 2 · C channels, to 2 · K.

    Nothing is moved; the vectors of the processor are fuller by what the kernel's zeros do not take.
    """
    (h, w, channels, features), (top, left) = kernel.shape, padding
    batch, height, width, _ = x.shape
    out = width + 2 * left - w + 1
    first, last = -left // 2, (w - left) // 2  # pairs that a pair of outputs sees, relative to it
    wide = jnp.zeros((h, 2 * (last - first + 1), channels, 2, features), kernel.dtype)
    for j in range(2):
        start = j - left - 2 * first
        wide = wide.at[:, start : start + w, :, j].set(kernel)
    wide = wide.reshape(h, -1, 2 * channels, 2 * features)
    sides = [(top, top), (-first, (out - width) // 2 + last)]
    pairs = x.reshape(batch, height, width // 2, 2 * channels)
    layout = ('NHWC', 'HWIO', 'NHWC')
    y = lax.conv_general_dilated(pairs, wide, (1, 1), sides, dimension_numbers=layout)
    return y.reshape(batch, y.shape[1], out, features)


def _pieces(x: jax.Array, kernel: tuple[int, ...], padding: Pair) -> tuple[jax.Array, Pair]:
    """What each block of positions sees, [B · H' · blocks, h · (BLOCK + w − 1) · C], and (H', W')."""
    (h, w), (top, left) = kernel[:2], padding
    batch, _, _, channels = x.shape
    height, width = x.shape[1] + 2 * top - h + 1, x.shape[2] + 2 * left - w + 1
    x = jnp.pad(x, ((0, 0), (top, top), (left, left + -width % _BLOCK), (0, 0)))
    x = x.reshape(batch, x.shape[1], -1)  # a row's pixels and their channels in one axis
    rows = jnp.stack([x[:, i : i + height] for i in range(h)], 2)
    step, length = _BLOCK * channels, (_BLOCK + w - 1) * channels
    starts = range(0, width * channels, step)
    pieces = jnp.stack([rows[..., start : start + length] for start in starts], 2)
    return pieces.reshape(-1, h * length), (height, width)


def _matrix(kernel: jax.Array) -> jax.Array:
    """[h, w, C, K] -> [h · (BLOCK + w − 1) · C, BLOCK · K]: column j has the kernel j pixels to the right."""
    h, w, channels, features = kernel.shape
    matrix = jnp.zeros((h, _BLOCK + w - 1, channels, _BLOCK, features), kernel.dtype)
    for j in range(_BLOCK):
        matrix = matrix.at[:, j : j + w, :, j].set(kernel)
    return matrix.reshape(-1, _BLOCK * features)
