"""Weights and images drawn by name: the same bits in every version of NumPy, with or without torch."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

# Square of the bound of uniform weights, times fan-in, by what a model's name contains. 6 keeps the signal's size
# through ReLU (He); 3 where a shortcut adds to it; 6.5 through swish and squeeze-and-excitation, and less the deeper the
# network is: a little below, all images get the same answer, and a little above, the signal grows without bounds. After a
# norm, 3 gives queries and keys of deviation 1.
GAIN = {
    'resne': 3.0, 'efficientnet_b0': 6.5, 'efficientnet_b1': 5.9, 'efficientnet_b2': 5.9, 'efficientnet_b3': 5.4,
    'efficientnet_b4': 5.7, 'vit': 3.0, '': 6.0,
}  # fmt: skip
LABELS = np.array([1, 7, 300, 999])
LEARNING_RATE = 1.0
AUX_WEIGHT = 0.3


def uniform(name: str, shape: Sequence[int]) -> np.ndarray:
    """float32 in [-1, 1), decided by `name`: PCG64's raw bits are part of its definition."""
    count = math.prod(shape)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'little')
    bits = np.random.PCG64(seed).random_raw(count // 2 + 1).astype('<u8').view('<u4')[:count]
    bits >>= 8
    return (bits.astype(np.float32) * np.float32(2**-23) - 1).reshape(shape)


def state_dict(model: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """A torch state dict for `model`: tensors of the names and shapes that are given."""
    gain = next(gain for part, gain in GAIN.items() if part in model)
    return {name: _tensor(name, shape, gain) for name, shape in shapes.items()}


def _tensor(name: str, shape: Sequence[int], gain: float) -> np.ndarray:
    if name.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    values = uniform(name, shape)
    if 'pos_embed' in name:
        return np.float32(0.5) * values
    if name.endswith(('gamma', 'layer_scale')):
        return np.float32(0.5) + np.float32(0.25) * values
    if len(shape) > 1:
        values *= np.float32(math.sqrt(gain / math.prod(shape[1:])))
        return values
    if name.endswith('running_var'):
        return 1 + np.float32(0.4) * values
    if name.endswith('.weight'):
        return 1 + np.float32(0.2) * values
    return np.float32(0.1) * values


def images(size: int, batch: int) -> np.ndarray:
    """float32 [batch, size, size, 3]: coarse squares and noise, each image with its own contrast."""
    coarse = uniform(f'coarse {batch}', (batch, 8, 8, 3))
    index = np.arange(size) * 8 // size
    noise = uniform(f'noise {size}', (batch, size, size, 3))
    contrast = np.linspace(0.5, 2, batch, dtype=np.float32)[:, None, None, None]
    tint = uniform(f'tint {batch}', (batch, 1, 1, 3))
    return contrast * (coarse[:, index][:, :, index] + np.float32(0.5) * noise) + tint


def sample(array: np.ndarray) -> np.ndarray:
    """At most 16 values spread over the flattened array."""
    flat = np.asarray(array).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(16, flat.size)).astype(int)]
