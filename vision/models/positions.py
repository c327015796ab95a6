"""Position embeddings: fixed ones, and the resizing of learned ones as in three libraries."""

import math
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

# Methods of resizing position embeddings, all of them bicubic (Keys 1981):
# - 'timm': `resample_abs_pos_embed`, a = -0.5 with antialiasing; also for DINOv2 with registers.
# - 'torchvision': `interpolate_embeddings`, with a = -0.75 and aligned corners.
# - 'dinov2': the authors' code for models without registers, with a = -0.75 and 0.1 added to the
#   new side.
Resize = Literal['timm', 'torchvision', 'dinov2']


def resize_positions(positions: Any, size: tuple[int, int], form: Resize) -> Any:
    """Resizes position embeddings float32 [h, w, D] to [*size, D]; returns NumPy for NumPy."""
    if positions.shape[:2] == size:
        return positions
    numpy: Any = np if isinstance(positions, np.ndarray) else jnp
    rows, columns = (_weights(*pair, form) for pair in zip(positions.shape, size, strict=False))
    # Products of float32 in full precision on every device.
    options: dict[str, Any] = {} if numpy is np else {'precision': jax.lax.Precision.HIGHEST}
    return numpy.einsum('yh,xw,hwd->yxd', rows, columns, positions, optimize=True, **options)


def sincos_positions(height: int, width: int, channels: int) -> np.ndarray:
    """Returns fixed position embeddings, float32 [height, width, channels].

    Sines and cosines of the column, then of the row, at channels / 4 wavelengths from 2π to 10,000
    times that (Beyer et al. 2022; the authors' `posemb_sincos_2d`).
    """
    steps = channels // 4
    rates = 10_000.0 ** -(np.arange(steps) / (steps - 1))
    y, x = (grid[..., None] * rates for grid in np.mgrid[:height, :width])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], -1).astype(np.float32)


@lru_cache(maxsize=64)
def _weights(length: int, new: int, form: Resize) -> np.ndarray:
    """Returns the weights float32 [new, length] of one axis."""
    if form == 'timm':
        # The centre of each new pixel, and the scale of the filter, which is wider for small grids.
        widening = max(length / new, 1.0)
        centers = (np.arange(new) + 0.5) * (length / new)
        weights = _cubic((np.arange(length) + 0.5 - centers[:, None]) / widening, -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    if form == 'torchvision':
        sources = np.arange(new) * ((length - 1) / max(new - 1, 1))
    else:
        sources = (np.arange(new) + 0.5) * (length / (new + 0.1)) - 0.5
    # Use four neighbours; beyond the edge, repeat the edge.
    weights = np.zeros((new, length), np.float32)
    for i, source in enumerate(sources):
        for neighbour in range(math.floor(source) - 1, math.floor(source) + 3):
            weights[i, min(max(neighbour, 0), length - 1)] += _cubic(source - neighbour, -0.75)
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Returns Keys's cubic convolution kernel with parameter `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
