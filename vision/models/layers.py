"""Layers that the model families share: convolution, pooling, normalisation, dense.

Images are [B, H, W, C], kernels [h, w, in, out]. Parameters are float32, and `dtype` is the type of
the computation. Padding is either symmetric and given in pixels, as in the papers' tables, or
TensorFlow's 'same'.

Convolution, max pooling and training's batch normalisation use their plain form or a registered
fast form. A fast form is a function with the arguments of `xla_convolve`, `xla_max_pool` or
`plain_batch_norm`. It returns the same values up to rounding, or None if it is not faster for the
given shape, type or backend. `vision/models/cpu` and `vision/models/batch_norm.py` register fast
forms; `VISION_FAST=0` in the environment disables them, and fused attention.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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

_fast: dict[str, Callable[..., Any]] = {}
# Settings of the thread that traces a program.
_enabled = ContextVar('fast forms', default=os.environ.get('VISION_FAST', '1') != '0')
_shapes_only = ContextVar('shapes only', default=False)


def register(name: Literal['convolve', 'max_pool', 'batch_norm'], form: Callable[..., Any]) -> None:
    """Registers the fast form of a layer; each has at most one."""
    _fast[name] = form


@contextmanager
def xla_only() -> Iterator[None]:
    """Context manager that disables fast forms while programs are traced.

    It is used for programs that run on other machines or whose operations are counted.
    """
    before = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(before)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Context manager for programs that are traced for shapes only, which makes tracing quicker.

    The layers' parameters are initialised with zeros, and fast forms are disabled.
    """
    before = _shapes_only.set(True)
    try:
        with xla_only():
            yield
    finally:
        _shapes_only.reset(before)


def _param(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> jax.Array:
    """Returns a float32 parameter of a layer.

    `Module.param` would trace the initialiser at each call, even if the parameter exists, to check
    its shape. This takes longer than tracing the rest of the layer.
    """
    if module.has_variable('params', name):
        value: jax.Array = module.get_variable('params', name)
        if value.shape == shape:
            return value
    init = nn.initializers.zeros if _shapes_only.get() else init
    return module.param(name, init, shape, jnp.float32)


def fast_forms_allowed() -> bool:
    """Returns False while `xla_only` is active."""
    return _enabled.get()


def _fast_form(name: str, *arguments: Any) -> Any:
    """Returns the result of the registered fast form, or None."""
    return _fast[name](*arguments) if _enabled.get() and name in _fast else None


def scaled(width: int, multiplier: float) -> int:
    """Returns a width times a width multiplier, rounded down.

    Raises:
      UserError: the result is 0.
    """
    if not int(width * multiplier):
        raise UserError(f'model.width={multiplier} leaves none of {width} channels')
    return int(width * multiplier)


def pair(value: Pair) -> tuple[int, int]:
    """Returns (value, value) for an int, and a tuple unchanged."""
    return (value, value) if isinstance(value, int) else value


def normal(std: float) -> Initializer:
    """Normal initialiser with the given standard deviation (AlexNet, VGG: 0.01)."""
    return nn.initializers.normal(std)


def truncated_normal(std: float) -> Initializer:
    """Normal initialiser truncated at ±2 `std`, as in Inception."""
    return lambda key, shape, dtype=jnp.float32: (
        std * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
    )


# He et al. 2015, eq. 15, with n counted over the outputs as in the ResNet authors' code.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
glorot_uniform = nn.initializers.glorot_uniform()
# Default initialiser of PyTorch's layers: U(±1/√fan-in).
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def uniform_bias(fan_in: int) -> Initializer:
    """Initialiser U(±1/√fan_in) for the bias of a layer with `fan_in_uniform`."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair = 1, padding: Padding = 0, groups: int = 1
) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C / groups, K]; all models use this function."""
    strides = pair(strides)
    if padding == 'same':
        sizes = zip(x.shape[1:3], kernel.shape[:2], strides, strict=True)
        sides = [same_padding(*size) for size in sizes]
    else:
        sides = [(p, p) for p in pair(padding)]
    y = _fast_form('convolve', x, kernel, strides, sides, groups)
    return xla_convolve(x, kernel, strides, sides, groups) if y is None else y


def same_padding(length: int, window: int, stride: int) -> tuple[int, int]:
    """Returns TensorFlow's padding 'same', (before, after), for ceil(length / stride) outputs.

    If the sum of the padding is odd, `after` is larger by one pixel.
    """
    total = max((-(-length // stride) - 1) * stride + window - length, 0)
    return total // 2, total - total // 2


def xla_convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Sides, groups: int = 1
) -> jax.Array:
    """Convolution by XLA."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


class Conv(nn.Module):
    """Convolution with parameters `kernel` [h, w, C / groups, features] and `bias` [features]."""

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
        """Maps [B, H, W, C] to [B, H', W', features]; UserError if C does not fit the kernel."""
        height, width = pair(self.kernel_size)
        channels = x.shape[-1]
        _check_fan_in(self, channels // self.groups, 'channels')
        shape = (height, width, channels // self.groups, self.features)
        kernel = _param(self, 'kernel', self.kernel_init, shape)
        # Parameters are float32 and are cast to the type of the computation.
        x = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            self.padding,
            self.groups,
        )
        if self.use_bias:
            init = self.bias_init or nn.initializers.zeros
            bias = _param(self, 'bias', init, (self.features,))
            x = x + bias.astype(self.dtype)
        return x


def multiply(x: jax.Array, kernel: jax.Array, output_dtype: Any) -> jax.Array:
    """Multiplies [..., in] by [in, out]; accumulates and returns in `output_dtype`."""
    return jnp.matmul(x, kernel, preferred_element_type=output_dtype)


class Dense(nn.Module):
    """Fully connected layer with parameters `kernel` [in, features] and `bias` [features].

    `output_dtype` is float32 for logits, so that bfloat16 does not round them.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = fan_in_uniform
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32
    output_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features]; UserError if the kernel has another input size."""
        _check_fan_in(self, x.shape[-1], 'values for each image')
        shape = (x.shape[-1], self.features)
        kernel = _param(self, 'kernel', self.kernel_init, shape)
        out = self.output_dtype or self.dtype
        y = multiply(x.astype(self.dtype), kernel.astype(self.dtype), out)
        if self.use_bias:
            bias = _param(self, 'bias', self.bias_init, (self.features,))
            y = y + bias.astype(out)
        return y


def _check_fan_in(module: nn.Module, fan_in: int, what: str) -> None:
    """Raises UserError if a layer's kernel does not fit its input."""
    if module.has_variable('params', 'kernel'):
        kernel: jax.Array = module.get_variable('params', 'kernel')
        expected = kernel.shape[-2]
        if expected != fan_in:
            raise UserError(
                f'layer {"/".join(module.path)} has parameters for {expected} {what}, but these '
                f'images give it {fan_in}: use images of the size and channels that it was made for'
            )


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), with PyTorch's running statistics.

    Training normalises by the batch's mean and biased variance. It moves the running mean and the
    running variance by `1 - momentum` towards the batch's mean and *unbiased* variance. Under jit
    over a mesh, the mean over the batch axis is over the global batch: no `axis_name` and no
    synchronisation is needed. All arithmetic is in float32. On accelerators, training uses
    `vision.models.batch_norm`.

    The parameters are `scale` and `bias` [C]; `batch_stats` has `mean` and `var` [C].
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises [B, H, W, C] or [B, C] over all axes except the last."""
        shape = (x.shape[-1],)
        scale = _param(self, 'scale', self.scale_init, shape) if self.use_scale else 1.0
        bias = _param(self, 'bias', nn.initializers.zeros, shape)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
        if train:
            y, mean, var = batch_norm(x, scale, bias, self.epsilon)
            # Update the running statistics.
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
            y = _normalise(x.astype(jnp.float32), mean, var, scale, bias, self.epsilon)
        return y.astype(self.dtype)


def batch_norm(
    x: jax.Array, scale: jax.Array | float, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises [B, …, C] by its statistics over all axes except the last.

    Returns:
      The normalised values, and the mean and the biased variance [C], all in float32.
    """
    found = _fast_form('batch_norm', x, scale, bias, epsilon)
    return plain_batch_norm(x, scale, bias, epsilon) if found is None else found


def plain_batch_norm(
    x: jax.Array, scale: jax.Array | float, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation by the formulas, differentiated by JAX."""
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - mean).mean(axes)
    return _normalise(x, mean, var, scale, bias, epsilon), mean, var


def _normalise(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array,
    epsilon: float,
) -> jax.Array:
    """Normalises by given statistics: one multiplication and one addition per value."""
    return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


def local_response_norm(
    x: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """AlexNet's local response normalisation over channels (Krizhevsky et al. 2012, section 3.3).

    b = a / (k + alpha * sum over `size` neighbouring channels of a²)^beta. Frameworks that average
    over the window need `size` times this alpha for the same result.
    """
    squares = jnp.square(x.astype(jnp.float32))
    before = size // 2
    window = (1,) * (x.ndim - 1) + (size,)
    padding = [(0, 0)] * (x.ndim - 1) + [(before, size - 1 - before)]
    # Sum the squares over a window along the channels.
    total = lax.reduce_window(squares, 0.0, lax.add, window, (1,) * x.ndim, padding)
    return (x * (k + alpha * total) ** -beta).astype(x.dtype)


def max_pool(
    x: jax.Array, window: int, strides: int, padding: int = 0, ceil: bool = False
) -> jax.Array:
    """Max pooling of [B, H, W, C]; windows overlap if strides < window.

    `ceil` rounds the number of windows up, as in Caffe: the last window may exceed the edge.
    """
    pads = [_pool_padding(n, window, strides, padding, ceil) for n in x.shape[1:3]]
    y = _fast_form('max_pool', x, window, strides, pads)
    return xla_max_pool(x, window, strides, pads) if y is None else y


def xla_max_pool(x: jax.Array, window: int, strides: int, padding: Sides) -> jax.Array:
    """Max pooling by XLA."""
    sides = [(0, 0), *padding, (0, 0)]
    sizes = (1, window, window, 1), (1, strides, strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, *sizes, sides)


def avg_pool(x: jax.Array, window: int, strides: int, padding: int = 0) -> jax.Array:
    """Average pooling of [B, H, W, C]; padding counts as zeros."""
    pads = [(padding, padding)] * 2
    return nn.avg_pool(x, (window, window), (strides, strides), pads)


def _pool_padding(
    length: int, window: int, stride: int, padding: int, ceil: bool
) -> tuple[int, int]:
    """Returns the padding (before, after); `after` is larger if the windows are rounded up."""
    if not ceil:
        return padding, padding
    outputs = -(-(length + 2 * padding - window) // stride) + 1
    if (outputs - 1) * stride >= length + padding:  # the last window would contain only padding
        outputs -= 1
    return padding, max((outputs - 1) * stride + window - length - padding, padding)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Averages [B, H, W, C] over positions to [B, C], in float32."""
    return before_sum(x).astype(jnp.float32).mean((1, 2)).astype(x.dtype)


def before_sum(x: jax.Array) -> jax.Array:
    """Returns x, which a sum over positions may follow on every backend.

    On CPUs, jaxlib 0.12 fuses a sum with the bfloat16 convolutions and ReLUs before it into a
    program that reads memory which was never written. A barrier prevents this fusion.
    """
    if x.dtype == jnp.bfloat16 and jax.default_backend() == 'cpu':
        return lax.optimization_barrier(x)
    return x


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages [B, H, W, C] over size × size windows that cover the image evenly.

    Window i of n pixels runs from floor(i n / size) to ceil((i + 1) n / size), so pixels are
    repeated if the image is smaller than `size`.
    """
    for axis in (1, 2):
        if x.shape[axis] != size:
            weights = jnp.asarray(_adaptive_weights(x.shape[axis], size), x.dtype)
            pooled = jnp.tensordot(x, weights, (axis, 1), precision=lax.Precision.HIGHEST)
            x = jnp.moveaxis(pooled, -1, axis)
    return x


def _adaptive_weights(length: int, size: int) -> np.ndarray:
    """Returns the weights [size, length] of the windows along one axis."""
    weights = np.zeros((size, length), np.float32)
    # Row i averages the pixels of window i.
    for i in range(size):
        start, stop = i * length // size, -(-(i + 1) * length // size)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


def flatten(x: jax.Array) -> jax.Array:
    """Flattens [B, ...] to [B, D]."""
    return x.reshape(x.shape[0], -1)


import vision.models.batch_norm  # noqa: E402 - registers the form of accelerators
import vision.models.cpu.fast  # noqa: E402, F401 - fast forms for CPUs: see vision/models/cpu
