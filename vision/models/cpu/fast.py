"""Fast forms of convolution and max pooling for CPUs; other backends use XLA's.

Results and gradients equal those of `lax` up to rounding. The form is chosen by shape and dtype
when a program is traced. This module chooses; `forms`, `winograd`, `strided` and `depthwise`
implement the forms. Each choice has a comment with its timings, "XLA → fast form". They are in
milliseconds on two cores of an AMD EPYC with AVX-512, JAX 0.12 with oneDNN (see `startup`), batch
16, 2026-11-25, unless noted.

Only two lines outside of this folder
import from it, in `vision/models/layers.py` and `vision/__init__.py` (process settings, `startup`).
If the folder and the two lines are deleted, every layer uses XLA.

Images are [B, H, W, C], kernels [h, w, C, K]. First derivatives in reverse mode are supported;
forward mode and second derivatives are not.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from vision.models import layers
from vision.models.cpu import forms
from vision.models.layers import Sides, xla_convolve

Pair = tuple[int, int]

_PART = 2**20  # maximum size of a part of a batch, in bytes
_MOST_PARTS = 16  # each part adds to the compile time


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Sides, groups: int
) -> jax.Array | None:
    """Computes the fast form of `vision.models.layers.xla_convolve`; None if there is none.

    Among grouped convolutions, only depthwise ones have a fast form.
    """
    if jax.default_backend() != 'cpu' or x.dtype not in (jnp.float32, jnp.bfloat16):
        return None
    if groups != 1:
        from vision.models.cpu import depthwise

        if depthwise.suits(x, kernel, groups):
            return depthwise.convolve(x, kernel, strides, tuple(padding))
        return None
    (top, bottom), (left, right) = padding
    if (top, left) != (bottom, right):
        return None
    return _convolve(x, kernel, strides, (top, left))


def max_pool(x: jax.Array, window: int, strides: int, padding: Sides) -> jax.Array | None:
    """Computes the fast form of `vision.models.layers.xla_max_pool`; None if there is none."""
    on_cpu = jax.default_backend() == 'cpu'
    if not on_cpu or window > 11 or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    return forms.max_pool(x, x.shape[1:3], window, strides, tuple(padding))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pair) -> jax.Array:
    """Convolves with the fastest form for the shape."""
    if kernel.shape[:2] == (1, 1) and padding == (0, 0) and x.dtype == jnp.float32:
        # Use a matrix product. 1024 to 256 channels at 14 px: 9.2 → 8.3 ms (without oneDNN 11 → 8;
        # 256 to 64 at 56 px: 23 → 9). In bfloat16 XLA's convolution is faster.
        return _strided(x, strides) @ kernel[0, 0]
    if forms.columns_suit(kernel.shape, strides, x.dtype):
        return forms.convolve_by_columns(x, kernel, padding)
    if kernel.shape[:2] == (3, 3):
        from vision.models.cpu import winograd

        if winograd.suits(x.shape, kernel.shape, strides, padding, x.dtype, winograd.CHANNELS):
            return winograd.convolve(x, kernel, padding)
    return _plain(x, kernel, strides, padding)


def _forward(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pair) -> tuple:
    """Forward pass that keeps input and kernel."""
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides: Pair, padding: Pair, residuals: tuple, gradient: jax.Array) -> tuple:
    """Returns the gradients with respect to input and kernel."""
    x, kernel = residuals
    return (
        _input_gradient(x.shape, kernel, gradient, strides, padding),
        _kernel_gradient(x, kernel.shape, gradient, strides, padding),
    )


_convolve.defvjp(_forward, _backward)


def _input_gradient(
    shape: tuple[int, ...], kernel: jax.Array, gradient: jax.Array, strides: Pair, padding: Pair
) -> jax.Array:
    """Computes the gradient of the input with the fastest form for the shape."""
    height, width = kernel.shape[:2]
    # For 1 x 1 kernels use a matrix product, or in bfloat16 a convolution.
    if (height, width) == (1, 1) and padding == (0, 0):
        if gradient.dtype == jnp.float32:
            return _spread(gradient @ kernel[0, 0].T, shape, strides)
        return _spread(
            xla_convolve(gradient, kernel.swapaxes(2, 3), (1, 1), [(0, 0)] * 2), shape, strides
        )
    if forms.columns_suit_input_gradient(kernel.shape, strides, gradient.dtype):
        return forms.input_gradient_by_columns(shape, kernel, gradient, padding)
    plain = max(height, width) == 1 or height <= padding[0] or width <= padding[1]
    if plain or max(strides) > min(height, width):
        convolution = partial(xla_convolve, strides=strides, padding=[(p, p) for p in padding])
        like = jax.ShapeDtypeStruct(shape, gradient.dtype)
        return jax.linear_transpose(lambda x: convolution(x, kernel), like)(gradient)[0]
    # Otherwise convolve the gradient with the flipped kernel.
    around = (height - 1 - padding[0], width - 1 - padding[1])
    turned = (height, width, kernel.shape[3], kernel.shape[2])
    if (height, width) == (3, 3):
        from vision.models.cpu import winograd

        maps, dtype = gradient.shape, gradient.dtype
        if winograd.suits(maps, turned, strides, around, dtype, winograd.CHANNELS):
            return winograd.convolve(gradient, kernel, around, True)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    if strides != (1, 1):
        from vision.models.cpu import strided

        return strided.by_phases(shape, flipped, gradient, strides, padding)
    # Without the barrier XLA folds the flip into a convolution that oneDNN does not support: 180
    # instead of 450 GFLOP/s in bfloat16.
    return _plain(gradient, lax.optimization_barrier(flipped), (1, 1), around)


def _kernel_gradient(
    x: jax.Array, shape: tuple[int, ...], gradient: jax.Array, strides: Pair, padding: Pair
) -> jax.Array:
    """Computes the gradient of the kernel with the fastest form for the shape."""
    height, width, channels, features = shape
    if (height, width) == (1, 1) and padding == (0, 0):
        # XLA reaches 43 GFLOP/s at 56 px and 57 at 14 px, the matrix product 158 and 192.
        positions = _strided(x, strides).reshape(-1, channels)
        return (positions.T @ gradient.reshape(-1, features))[None, None]
    if forms.columns_suit_gradient(shape, strides, x.dtype):
        return forms.kernel_gradient_by_columns(x, shape, gradient, padding)
    # 3 x 3: Winograd's form if there are enough channels.
    if (height, width) == (3, 3):
        from vision.models.cpu import winograd

        least = winograd.GRADIENT_CHANNELS
        if winograd.suits(x.shape, shape, strides, padding, x.dtype, least):
            return winograd.kernel_gradient(x, gradient, padding)
    if forms.rows_suit_gradient(shape, x.dtype):
        return forms.kernel_gradient_by_rows(x, shape, gradient, strides, padding)
    # Few channels: XLA on parts of the batch.
    of_images = partial(_xla_kernel_gradient, shape, strides, padding)
    if max(channels, features) <= 32 and x.dtype == jnp.float32:
        return _sum_of_parts(of_images, x, gradient)
    return of_images(x, gradient)


def _xla_kernel_gradient(
    shape: tuple[int, ...], strides: Pair, padding: Pair, x: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Computes the gradient of the kernel by transposing XLA's convolution."""
    convolution = partial(xla_convolve, strides=strides, padding=[(p, p) for p in padding])
    like = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda kernel: convolution(x, kernel), like)(gradient)[0]


def _sum_of_parts(
    kernel_gradient: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Computes a kernel gradient in parts of the batch that fit into a core's cache.

    XLA's time grows faster than the batch size. Without AVX-512, 3 x 3, 16 to 16 channels, 28 px,
    batch 128: 21 → 8.7 ms (one core: 86 → 14; without oneDNN 27 → 10); at 32 px 84 → 12.6 (200 →
    13); stride 2, 16 to 32, 28 px: 7.4 → 7.2 (14.8 → 6.2). If the parts are not faster, they are
    only a little slower: 32 to 32 channels, 12.2 → 8.5 at 14 px, but 13 → 14 at 16 px.
    """
    batch, size = len(x), x.size * x.dtype.itemsize
    if size <= 2 * _PART:
        return kernel_gradient(x, gradient)
    # The images of a part are the channels of the gradient's convolution. That convolution needs
    # multiples of eight channels to fill its vectors.
    numbers = [n for n in range(1, _MOST_PARTS + 1) if batch % (8 * n) == 0 and size <= n * _PART]
    parts = min(numbers, default=1)

    # Part i has every n-th image from i on, so that no image of a sharded batch leaves its device.
    def part(values: jax.Array, i: int) -> jax.Array:
        return values.reshape(batch // parts, parts, *values.shape[1:])[:, i]

    gradients = [kernel_gradient(part(x, i), part(gradient, i)) for i in range(parts)]
    return sum(gradients[1:], gradients[0])


def _plain(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pair) -> jax.Array:
    """Convolves with XLA, with a workaround for images smaller than the kernel.

    For such images XLA exchanges image and kernel. oneDNN does not support this, and XLA falls back
    to its slowest loop. 3 x 3, 256 channels, 2 px, batch 128 in bfloat16 on one core: 120 ms, and
    under 4 ms with explicit padding and a barrier after it.
    """
    if math.prod(x.shape[1:3]) < math.prod(kernel.shape[:2]):
        sides = [(0, 0), *((p, p) for p in padding), (0, 0)]
        x, padding = lax.optimization_barrier(jnp.pad(x, sides)), (0, 0)
    return xla_convolve(x, kernel, strides, [(p, p) for p in padding])


def _strided(x: jax.Array, strides: Pair) -> jax.Array:
    """Subsamples the positions of a 1 x 1 convolution."""
    return x if strides == (1, 1) else x[:, :: strides[0], :: strides[1]]


def _spread(x: jax.Array, shape: tuple[int, ...], strides: Pair) -> jax.Array:
    """Transpose of `_strided`: inserts zeros between the values, up to `shape`."""
    if strides == (1, 1):
        return x
    (h, w), (height, width) = x.shape[1:3], shape[1:3]
    # `interior` padding of lax.pad inserts the zeros.
    after = [n - 1 - (m - 1) * s for n, m, s in zip((height, width), (h, w), strides, strict=True)]
    zero = jnp.zeros((), x.dtype)
    inner = [(0, a, s - 1) for a, s in zip(after, strides, strict=True)]
    return lax.pad(x, zero, [(0, 0, 0), *inner, (0, 0, 0)])


layers.register('convolve', convolve)
layers.register('max_pool', max_pool)
