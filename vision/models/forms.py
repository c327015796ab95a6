"""Convolution and max pooling as XLA computes them, or as a registered faster form does.

A fast form is a function with the arguments of the operation that it stands for. It returns the same values, up to the
rounding of another order of sums, or None where it is not faster: for this shape, type or backend. `vision/models/cpu`
registers some. Without a registered form every layer is XLA's own.

Images are [B, H, W, C], kernels [h, w, C / groups, K].
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Sides = Sequence[tuple[int, int]]  # padding before and after, in height and width

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')

_fast: dict[str, Callable[..., jax.Array | None]] = {}
_enabled = True


def register(name: Literal['convolve', 'max_pool'], form: Callable[..., jax.Array | None]) -> None:
    """Registers the fast form of `convolve` or `max_pool` of this module; one of each."""
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


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pair, groups: int
) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C / groups, K], `padding` pixels on either side."""
    if _enabled and 'convolve' in _fast:
        y = _fast['convolve'](x, kernel, strides, padding, groups)
        if y is not None:
            return y
    return xla_convolve(x, kernel, strides, [(p, p) for p in padding], groups)


def max_pool(x: jax.Array, window: int, strides: int, padding: Sides) -> jax.Array:
    """Largest value in each window of [B, H, W, C]."""
    if _enabled and 'max_pool' in _fast:
        y = _fast['max_pool'](x, window, strides, padding)
        if y is not None:
            return y
    return xla_max_pool(x, window, strides, padding)


def xla_convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Sides, groups: int = 1
) -> jax.Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=_LAYOUT, feature_group_count=groups
    )


def xla_max_pool(x: jax.Array, window: int, strides: int, padding: Sides) -> jax.Array:
    """XLA's own max pooling."""
    sides = [(0, 0), *padding, (0, 0)]
    sizes = (1, window, window, 1), (1, strides, strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, *sizes, sides)
