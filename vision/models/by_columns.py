"""Convolutions of images of few channels, stride 1, as matrix products.

A row of `_BLOCK` output positions sees h rows of `_BLOCK` + w − 1 pixels: contiguous pieces of the
image, which are cheap to lay side by side, where the patches of single positions (im2col) are not.
The product's matrix has the kernel once for each position, between zeros: of few channels, the
multiplications with zero cost less than XLA's convolution does. For CPUs; `vision.models.fast` says
what was measured on, and decides where it is used.
"""

import jax
import jax.numpy as jnp

Pair = tuple[int, int]

_BLOCK = 4  # of 2, 4, 7 and 8 the best, or within a tenth of it, for all shapes below


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
