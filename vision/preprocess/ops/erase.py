"""Ops that erase a part of an image: Cutout and Random Erasing."""

from typing import Any

import jax
import jax.numpy as jnp

from vision.core.startup import tf_cpu
from vision.preprocess.ops.registry import DeviceRng, Rng


def cutout(image: Any, rng: Rng, size: int, value: float = 0.0) -> Any:
    """Fills a square around a random centre, cut off at the border (Cutout, arXiv:1708.04552, 3.2).

    Args:
      size: side of the square in pixels; the paper uses 16 for CIFAR-10.
      value: fill value, 0 … 255.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    top, left = tf.unstack(rng.below(tf.shape(image)[:2]) - size // 2)
    return _fill_box(image, (top, left, size, size), tf.cast(value, image.dtype))


def cutout_on_device(image: jax.Array, rng: DeviceRng, size: int, value: float = 0.0) -> jax.Array:
    """Device form of `cutout`; does not round `value`."""
    corner = rng.below(image.shape[:2]) - size // 2
    # Mark the rows and columns inside the square, and combine the marks.
    inside = [
        (begin <= pixels) & (pixels < begin + size)
        for begin, pixels in zip(corner, map(jnp.arange, image.shape[:2]))
    ]
    return jnp.where((inside[0][:, None] & inside[1])[..., None], value, image)


def random_erasing(
    image: Any,
    rng: Rng,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Any:
    """Fills a random box with random pixels (Random Erasing, arXiv:1708.04896, algorithm 1).

    Args:
      probability: probability that the image is changed.
      area: range of the box's area as a fraction of the image; drawn uniformly.
      ratio: range of the box's height / width; drawn uniformly, as in the paper.

    Returns:
      uint8 [H, W, C]. Ten boxes are tried; if none is inside the image, the image is not changed.
    """
    tf = tf_cpu()
    h, w = (tf.cast(side, tf.float64) for side in tf.unstack(tf.shape(image)[:2]))
    # Draw ten boxes, and take the first one inside the image.
    areas = h * w * rng.uniform(*area, shape=(10,))
    ratios = rng.uniform(*ratio, shape=(10,))
    heights, widths = tf.floor(tf.sqrt(areas * ratios)), tf.floor(tf.sqrt(areas / ratios))
    fits = (heights < h) & (widths < w)
    tops = tf.floor(rng.uniform(shape=(10,)) * (h - heights + 1))
    lefts = tf.floor(rng.uniform(shape=(10,)) * (w - widths + 1))
    first = tf.argmax(tf.cast(fits, tf.int32))
    boxes = tf.cast(tf.stack([tops, lefts, heights, widths], 1), tf.int32)
    chosen = rng.chance(probability) & tf.reduce_any(fits)

    def erase() -> Any:
        noise = rng.field(tf.shape(image), 0, 256, 'int32')
        return _fill_box(image, tf.unstack(boxes[first]), tf.cast(noise, image.dtype))

    return tf.cond(chosen, erase, lambda: image)


def _fill_box(image: Any, box: Any, value: Any) -> Any:
    """Replaces a box (top, left, height, width) by a value or by the pixels of an array."""
    tf = tf_cpu()
    top, left, height, width = box
    rows, columns = tf.range(tf.shape(image)[0]), tf.range(tf.shape(image)[1])
    inside_y = (rows >= top) & (rows < top + height)
    inside_x = (columns >= left) & (columns < left + width)
    inside = (inside_y[:, None] & inside_x[None, :])[..., None]
    return tf.ensure_shape(tf.where(inside, value, image), image.shape)
