"""Cost of the layers that models share, by formula, which is quicker than a trace."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.layers import BatchNorm, Conv, Dense, pair
from vision.models.transformer import DropPath, LayerScale


class Cost(NamedTuple):
    """Shapes of the outputs and variables of a module, its multiply-adds and activations."""

    outputs: Any
    variables: dict[str, Any]
    macs: int = 0
    activations: int = 0


def layer_cost(module: nn.Module, x: jax.Array) -> Cost | None:
    """Returns the cost of a shared layer for an input `x`, or None for any other module."""
    formula = _FORMULAS.get(type(module))
    return None if formula is None else formula(module, x)


def _conv(layer: Conv, x: jax.Array) -> Cost:
    kernel, strides = pair(layer.kernel_size), pair(layer.strides)
    batch, *sides, channels = x.shape
    if layer.padding == 'same':
        sides = [-(-n // s) for n, s in zip(sides, strides, strict=True)]
    else:
        padded = [n + 2 * p for n, p in zip(sides, pair(layer.padding), strict=True)]
        windows = zip(padded, kernel, strides, strict=True)
        sides = [max((n - k) // s + 1, 0) for n, k, s in windows]
    shape = (*kernel, channels // layer.groups, layer.features)
    return _product(layer, (batch, *sides, layer.features), shape, layer.dtype)


def _dense(layer: Dense, x: jax.Array) -> Cost:
    shape = x.shape[-1], layer.features
    dtype = layer.output_dtype or layer.dtype
    return _product(layer, (*x.shape[:-1], layer.features), shape, dtype)


def _product(layer: Conv | Dense, out: tuple[int, ...], kernel: tuple, dtype: Any) -> Cost:
    """Returns the cost of a layer that multiplies by a `kernel` whose last axis is the output's."""
    params = {'kernel': _float32(*kernel)}
    if layer.use_bias:
        params['bias'] = _float32(layer.features)
    values = math.prod(out)
    macs = values * math.prod(kernel[:-1])
    return Cost(jax.ShapeDtypeStruct(out, dtype), {'params': params}, macs, values)


def _batch_norm(layer: BatchNorm, x: jax.Array) -> Cost:
    names = ['bias', 'scale'] if layer.use_scale else ['bias']
    vector = _float32(x.shape[-1])
    variables = {
        'params': dict.fromkeys(names, vector),
        'batch_stats': {'mean': vector, 'var': vector},
    }
    return Cost(jax.ShapeDtypeStruct(x.shape, layer.dtype), variables)


def _layer_norm(layer: nn.LayerNorm, x: jax.Array) -> Cost:
    params = dict.fromkeys(('bias', 'scale'), _float32(x.shape[-1]))
    return Cost(jax.ShapeDtypeStruct(x.shape, layer.dtype or x.dtype), {'params': params})


def _layer_scale(layer: LayerScale, x: jax.Array) -> Cost:
    outputs = jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, layer.dtype))
    return Cost(outputs, {'params': {'gamma': _float32(x.shape[-1])}})


def _identity(layer: nn.Module, x: jax.Array) -> Cost:
    return Cost(x, {})


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


_FORMULAS: dict[type, Any] = {
    Conv: _conv,
    Dense: _dense,
    BatchNorm: _batch_norm,
    nn.LayerNorm: _layer_norm,
    LayerScale: _layer_scale,
    nn.Dropout: _identity,
    DropPath: _identity,
}
