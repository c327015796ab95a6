"""Colour ops, which take and return uint8 [H, W, C]; they follow Pillow's ImageEnhance."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core.startup import tf_cpu
from vision.preprocess.ops.registry import Rng
from vision.preprocess.ops.resampling import to_uint8

# Weights of ITU-R 601 luma (0.299, 0.587, 0.114), rounded to 16 bits as in Pillow.
_GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)

# Principal components of ImageNet's RGB values in 0 … 1, as published with AlexNet's reproductions
# (fb.resnet.torch): eigenvalues, and eigenvectors as columns.
_PCA_VALUES = (0.2175, 0.0188, 0.0045)
_PCA_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def _float(image: Any) -> Any:
    """Casts to float32."""
    tf = tf_cpu()
    return tf.cast(image, tf.float32)


def grey(image: Any) -> Any:
    """Computes the ITU-R 601 luma: [H, W, 3] → float32 [H, W, 1]; grey images are only cast."""
    tf = tf_cpu()
    values = _float(image)
    if image.shape[-1] == 1:
        return values
    return tf.reduce_sum(values * tf.constant(_GREY), -1, keepdims=True)


def blend(other: Any, image: Any, factor: Any) -> Any:
    """Interpolates between another image (factor 0) and the image (factor 1), or extrapolates.

    Args:
      other: float32, broadcastable to the image.
      image: [H, W, C].
      factor: scalar.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    factor = tf.cast(factor, tf.float32)
    return to_uint8(other + factor * (_float(image) - other))


def _factor(rng: Rng, strength: float) -> Any:
    """Draws a factor uniformly from max(0, 1 − strength) … 1 + strength."""
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)


def brightness(image: Any, rng: Rng, strength: float) -> Any:
    """Multiplies by a factor drawn uniformly from max(0, 1 − strength) … 1 + strength.

    Part of the colour jitter of Howard (arXiv:1312.5402), with strength 0.5; ResNet variants use
    0.4.

    Args:
      strength: 0 changes nothing.

    Returns:
      uint8 [H, W, C].
    """
    return blend(0.0, image, _factor(rng, strength))


def contrast(image: Any, rng: Rng, strength: float) -> Any:
    """Blends with the image's mean grey by a factor drawn as in `brightness` (arXiv:1312.5402).

    Args:
      strength: 0 changes nothing.

    Returns:
      uint8 [H, W, C].
    """
    return blend(mean_grey(image), image, _factor(rng, strength))


def mean_grey(image: Any) -> Any:
    """Computes the mean luma, float32 scalar, rounded as in Pillow's ImageEnhance.Contrast."""
    tf = tf_cpu()
    luma = tf.floor(grey(image) + 0.5)
    return tf.floor(tf.cast(tf.reduce_mean(tf.cast(luma, tf.float64)), tf.float32) + 0.5)


def saturation(image: Any, rng: Rng, strength: float) -> Any:
    """Blends with the grey image by a factor drawn as in `brightness` (arXiv:1312.5402).

    Args:
      image: uint8 [H, W, C]; a grey image does not change.
      strength: 0 changes nothing.

    Returns:
      uint8 [H, W, C].
    """
    return blend(grey(image), image, _factor(rng, strength))


def hue(image: Any, rng: Rng, strength: float) -> Any:
    """Rotates the hue in HSV by a fraction of the circle drawn uniformly from ± strength.

    Args:
      strength: 0 … 0.5; with 0.5 every hue can result.

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    turn = tf.cast(rng.uniform(-strength, strength), tf.float32)
    hsv = tf.image.rgb_to_hsv(_float(image) / 255)
    # The hue is the first channel, in 0 … 1.
    turned = tf.concat([tf.math.floormod(hsv[..., :1] + turn, 1.0), hsv[..., 1:]], -1)
    return to_uint8(tf.image.hsv_to_rgb(turned) * 255)


def grayscale(image: Any, rng: Rng, probability: float = 1.0) -> Any:
    """Replaces all channels by the luma with a probability (SimCLR, arXiv:2002.05709, appendix A).

    Args:
      probability: 0 … 1; SimCLR uses 0.2.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()

    def to_grey() -> Any:
        return tf.broadcast_to(to_uint8(grey(image)), tf.shape(image))

    result = tf.cond(rng.chance(probability), to_grey, lambda: image)
    return tf.ensure_shape(result, image.shape)


def rgb(image: Any) -> Any:
    """Converts grey to three equal channels: uint8 [H, W, 1 or 3] → [H, W, 3]."""
    tf = tf_cpu()
    return image if image.shape[-1] == 3 else tf.image.grayscale_to_rgb(image)


def rgb_on_device(image: jax.Array) -> jax.Array:
    """Device form of `rgb`."""
    return jnp.broadcast_to(image, (*image.shape[:2], 3))


def pca_noise(image: Any, rng: Rng, std: float = 0.1) -> Any:
    """Adds AlexNet's colour noise along the principal components (NIPS 2012, section 4.1).

    Adds Σ pᵢ αᵢ λᵢ to every pixel. pᵢ and λᵢ are the eigenvectors and eigenvalues of ImageNet's
    colours, and αᵢ is normally distributed and drawn once for the image.

    Args:
      std: standard deviation of αᵢ; 0.1 in the paper.

    Returns:
      uint8 [H, W, 3].
    """
    tf = tf_cpu()
    if image.shape[-1] != 3:
        raise ValueError(f'pca_noise is for 3 channels, not {image.shape[-1]}')
    # Box-Muller transform: unlike a library's normal generator, it gives the same numbers
    # everywhere.
    radius = tf.sqrt(-2 * tf.math.log(1 - rng.uniform(shape=(3,))))
    alpha = std * radius * tf.cos(rng.uniform(0, 2 * np.pi, shape=(3,)))
    # Project the noise on the eigenvectors, in the scale 0 … 255.
    weights = tf.constant(_PCA_VECTORS, tf.float64) * tf.constant(_PCA_VALUES, tf.float64)
    shift = 255 * tf.linalg.matvec(weights, alpha)
    return to_uint8(_float(image) + tf.cast(shift, tf.float32))
