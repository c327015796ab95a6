"""Ops that resize."""

from typing import Any

import jax

from vision.core.startup import tf_cpu
from vision.preprocess.ops import Rng
from vision.preprocess.opstring import check_choice


def to_uint8(values: Any) -> Any:
    """Rounds to the nearest, halves up, and clips: any float → uint8."""
    tf = tf_cpu()
    return tf.cast(tf.clip_by_value(tf.floor(values + 0.5), 0, 255), tf.uint8)


def resize(
    image: Any,
    height: int,
    width: int | None = None,
    method: str = 'bilinear',
    antialias: bool = True,
) -> Any:
    """Resizes to exactly this size, whatever the aspect; pixel centres are at half integers, as in Pillow.

    Args:
      height: in pixels.
      width: the same as height, unless given.
      method: bilinear, bicubic (Keys' with a = −0.5) or area.
      antialias: widens the filter when shrinking, as Pillow does; area averages in any case.

    Returns:
      uint8 [height, width, C].
    """
    tf = tf_cpu()
    check_choice('resize', 'method', method, ('bilinear', 'bicubic', 'area'))
    size = (height, width or height)
    if method == 'bilinear' and not antialias:
        return resize_bilinear_fast(image, size)
    values = tf.image.resize(image, size, method=method, antialias=antialias)
    return tf.ensure_shape(to_uint8(values), [*size, image.shape[-1]])


def resize_on_device(image: jax.Array, height: int, width: int | None = None) -> jax.Array:
    """`resize` by its default method, bilinear with antialiasing; it has no other."""
    shape = (height, width or height, image.shape[2])
    if image.shape == shape:
        return image
    return jax.image.resize(image, shape, 'linear', antialias=True)


def resize_bilinear_fast(image: Any, size: tuple[int, int]) -> Any:
    """Resizes with four pixels for each: uint8 [H, W, C] → uint8 [*size, C]."""
    tf = tf_cpu()
    # The kernel is a third faster on float32 than on uint8, and gives the same bits.
    pixels = tf.cast(image, tf.float32)[None]
    values = tf.raw_ops.ResizeBilinear(images=pixels, size=size, half_pixel_centers=True)[0]
    return tf.ensure_shape(tf.cast(values + 0.5, tf.uint8), [*size, image.shape[-1]])


def resize_small(image: Any, size: Any, method: str = 'bilinear', antialias: bool = True) -> Any:
    """Resizes so that the shorter side is `size`, keeping the aspect (VGG, arXiv:1409.1556, 3.1).

    Args:
      size: of the shorter side, in pixels; the longer side is rounded down, at least `size`.
      method: as for `resize`.
      antialias: as for `resize`.

    Returns:
      uint8 [H', W', C], min(H', W') == size.
    """
    check_choice('resize_small', 'method', method, ('bilinear', 'bicubic', 'area'))
    new = short_side_to(image, size)
    return to_uint8(tf_cpu().image.resize(image, new, method=method, antialias=antialias))


def short_side_to(image: Any, size: Any) -> Any:
    """The height and width of an image [H, W, C] resized to that shorter side: int32 [2]."""
    tf = tf_cpu()
    height, width = tf.unstack(tf.shape(image)[:2])
    short = tf.minimum(height, width)
    return tf.stack([height * size // short, width * size // short])


def scale_jitter(image: Any, rng: Rng, low: int = 256, high: int = 512) -> Any:
    """Resizes the shorter side to a random length, as VGG (arXiv:1409.1556, 3.1.1) and ResNet do.

    Follow it with `random_crop(224)`. ResNet (arXiv:1512.03385, 3.4) takes [256, 480].

    Args:
      low: the least length, in pixels.
      high: the greatest.

    Returns:
      uint8 [H', W', C], low ≤ min(H', W') ≤ high, every length equally likely.
    """
    return resize_small(image, jittered(rng, low, high))


def jittered(rng: Rng, low: int, high: int) -> Any:
    """The shorter side that `scale_jitter` chooses: an int32 scalar."""
    return low + rng.below(high - low + 1)
