"""The layers that the families share: the one place where a convolution, a pool or a norm is computed.

Images are [B, H, W, C], kernels [h, w, in, out]. Parameters are float32; `dtype` is what is
computed in. Padding is symmetric and counted in pixels, as in the papers' tables, or TensorFlow's 'same'.

Convolution and max pooling are XLA's, or a registered faster form: a function with the arguments of `xla_convolve` or
`xla_max_pool`, which returns the same values, up to the rounding of another order of sums, or None where it is not
faster: for this shape, type or backend. `vision/models/cpu` registers some.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vision.core.errors import UserError

Pair = int | tuple[int, int]
Padding = Pair | Literal['same']
Sides = Sequence[tuple[int, int]]  # padding before and after, in height and width
Initializer = Callable[..., jax.Array]

_fast: dict[str, Callable[..., jax.Array | None]] = {}
_enabled = True


def register(name: Literal['convolve', 'max_pool'], form: Callable[..., jax.Array | None]) -> None:
    """Registers the fast form of `xla_convolve` or `xla_max_pool`; one of each."""
    _fast[name] = form


@contextmanager
def xla_only() -> Iterator[None]:
    """Uses XLA's own forms in what is traced within: programs for other machines, programs that are counted."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def _fast_form(name: str, *arguments: Any) -> jax.Array | None:
    return _fast[name](*arguments) if _enabled and name in _fast else None


def scaled(width: int, multiplier: float) -> int:
    """A width times a width multiplier, rounded down.

    Raises:
      UserError: nothing would be left of it.
    """
    if not int(width * multiplier):
        raise UserError(f'model.width={multiplier} leaves no channel of {width}')
    return int(width * multiplier)


def pair(value: Pair) -> tuple[int, int]:
    """Returns (value, value) for an int; a tuple is returned as it is."""
    return (value, value) if isinstance(value, int) else value


def normal(std: float) -> Initializer:
    """Plain normal of the given standard deviation (AlexNet, VGG: 0.01)."""
    return nn.initializers.normal(std)


def truncated_normal(std: float) -> Initializer:
    """Normal cut at two of its `std`: what Inception draws from; the cut makes it narrower."""
    return lambda key, shape, dtype=jnp.float32: (
        std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
    )


# He et al. 2015, eq. 15 with n counted over the outputs, as the ResNet authors' code has it.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
glorot_uniform = nn.initializers.glorot_uniform()
# What a framework's layer draws that its model's author left alone: U(±1/√fan-in).
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def uniform_bias(fan_in: int) -> Initializer:
    """U(±1/√fan_in), the companion of `fan_in_uniform`."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair = 1, padding: Padding = 0, groups: int = 1
) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C / groups, K]; every convolution of every model is this."""
    strides = pair(strides)
    if padding == 'same':
        sizes = zip(x.shape[1:3], kernel.shape[:2], strides, strict=True)
        sides = [same_padding(*size) for size in sizes]
    else:
        sides = [(p, p) for p in pair(padding)]
    y = _fast_form('convolve', x, kernel, strides, sides, groups)
    return xla_convolve(x, kernel, strides, sides, groups) if y is None else y


def same_padding(length: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding 'same': ceil(length / stride) outputs, an odd pixel of padding at the end."""
    total = max((-(-length // stride) - 1) * stride + window - length, 0)
    return total // 2, total - total // 2


def xla_convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Sides, groups: int = 1
) -> jax.Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


class Conv(nn.Module):
    """A convolution; parameters `kernel` [h, w, C / groups, features] and `bias` [features]."""

    features: int
    kernel_size: Pair
    strides: Pair = 1
    padding: Padding = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = he_normal_fan_out
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]; UserError if the parameters are for other channels."""
        height, width = pair(self.kernel_size)
        channels = x.shape[-1]
        _check_fan_in(self, channels // self.groups, 'channels')
        shape = (height, width, channels // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        x = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            self.padding,
            self.groups,
        )
        if self.use_bias:
            init = self.bias_init or nn.initializers.zeros
            bias = self.param('bias', init, (self.features,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


def multiply(x: jax.Array, kernel: jax.Array, output_dtype: Any) -> jax.Array:
    """[..., in] times [in, out] -> [..., out], summed in at least its precision and returned as `output_dtype`."""
    return jnp.matmul(x, kernel, preferred_element_type=output_dtype)


class Dense(nn.Module):
    """A matrix product; parameters `kernel` [in, features] and `bias` [features].

    `output_dtype` is float32 for what makes logits, so that no bit of them is lost in bfloat16.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = fan_in_uniform
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32
    output_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., features]; UserError if the parameters are for another size."""
        _check_fan_in(self, x.shape[-1], 'values for each image')
        shape = (x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        out = self.output_dtype or self.dtype
        y = multiply(x.astype(self.dtype), kernel.astype(self.dtype), out)
        if self.use_bias:
            bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
            y = y + bias.astype(out)
        return y


def _check_fan_in(module: nn.Module, fan_in: int, what: str) -> None:
    if module.has_variable('params', 'kernel'):
        kernel: jax.Array = module.get_variable('params', 'kernel')
        expected = kernel.shape[-2]
        if expected != fan_in:
            raise UserError(
                f'layer {"/".join(module.path)} has parameters for {expected} {what}, but these '
                f'images give it {fan_in}: feed images of the size and channels it was made with'
            )


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), with running statistics as PyTorch keeps them.

    Training normalises with the batch's mean and biased variance and moves the running mean and
    the *unbiased* variance by `1 - momentum` towards the batch's. Under jit over a mesh the mean
    over the batch axis is the mean over the global batch, whatever devices hold it: there is no
    `axis_name`, and nothing to synchronise. All of it is computed in float32.

    Parameters `scale` and `bias` [C]; batch_stats `mean` and `var` [C].
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises [B, H, W, C] or [B, C] over all axes but the last."""
        shape = (x.shape[-1],)
        scale = self.param('scale', self.scale_init, shape, jnp.float32) if self.use_scale else 1.0
        bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.square(x - mean).mean(axes)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = lax.rsqrt(var + self.epsilon) * scale
        return ((x - mean) * factor + bias).astype(self.dtype)


def local_response_norm(
    x: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """AlexNet's normalisation across channels (Krizhevsky et al. 2012, section 3.3): same shape.

    b = a / (k + alpha * sum over `size` neighbouring channels of a²)^beta. The sum is a sum: a
    framework that averages over its window needs `size` times this alpha for the same result.
    """
    squares = jnp.square(x.astype(jnp.float32))
    before = size // 2
    window = (1,) * (x.ndim - 1) + (size,)
    padding = [(0, 0)] * (x.ndim - 1) + [(before, size - 1 - before)]
    total = lax.reduce_window(squares, 0.0, lax.add, window, (1,) * x.ndim, padding)
    return (x * (k + alpha * total) ** -beta).astype(x.dtype)


def max_pool(
    x: jax.Array, window: int, strides: int, padding: int = 0, ceil: bool = False
) -> jax.Array:
    """Largest value in each window of [B, H, W, C]; overlapping where strides < window.

    `ceil` keeps a last window that hangs over the edge, as Caffe does.
    """
    pads = [_pool_padding(n, window, strides, padding, ceil) for n in x.shape[1:3]]
    y = _fast_form('max_pool', x, window, strides, pads)
    return xla_max_pool(x, window, strides, pads) if y is None else y


def xla_max_pool(x: jax.Array, window: int, strides: int, padding: Sides) -> jax.Array:
    """XLA's own max pooling."""
    sides = [(0, 0), *padding, (0, 0)]
    sizes = (1, window, window, 1), (1, strides, strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, *sizes, sides)


def avg_pool(x: jax.Array, window: int, strides: int, padding: int = 0) -> jax.Array:
    """Mean of each window of [B, H, W, C]; padding counts as zeros."""
    pads = [(padding, padding)] * 2
    return nn.avg_pool(x, (window, window), (strides, strides), pads)


def _pool_padding(
    length: int, window: int, stride: int, padding: int, ceil: bool
) -> tuple[int, int]:
    if not ceil:
        return padding, padding
    outputs = -(-(length + 2 * padding - window) // stride) + 1
    if (outputs - 1) * stride >= length + padding:  # the last window would see padding only
        outputs -= 1
    return padding, max((outputs - 1) * stride + window - length - padding, padding)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, C], summed in float32."""
    return x.astype(jnp.float32).mean((1, 2)).astype(x.dtype)


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] -> [B, size, size, C]: means over windows that cover the image evenly.

    Window i of n pixels runs from floor(i n / size) to ceil((i + 1) n / size), so an image smaller
    than `size` repeats pixels.
    """
    for axis in (1, 2):
        if x.shape[axis] != size:
            weights = jnp.asarray(_adaptive_weights(x.shape[axis], size), x.dtype)
            pooled = jnp.tensordot(x, weights, (axis, 1), precision=lax.Precision.HIGHEST)
            x = jnp.moveaxis(pooled, -1, axis)
    return x


def _adaptive_weights(length: int, size: int) -> np.ndarray:
    weights = np.zeros((size, length), np.float32)
    for i in range(size):
        start, stop = i * length // size, -(-(i + 1) * length // size)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


def flatten(x: jax.Array) -> jax.Array:
    """[B, ...] -> [B, D]."""
    return x.reshape(x.shape[0], -1)


import vision.models.cpu.fast  # noqa: E402, F401 - fast forms for CPUs: see vision/models/cpu
