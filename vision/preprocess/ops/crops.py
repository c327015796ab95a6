"""Crop, pad, translate and flip ops."""

from typing import Any

import jax
import jax.numpy as jnp

from vision.core.errors import UserError
from vision.core.startup import tf_cpu
from vision.preprocess.ops.registry import DeviceRng, Rng
from vision.preprocess.ops.resampling import resize_bilinear_fast


def central_crop(image: Any, height: int, width: int | None = None) -> Any:
    """Crops the centre of an image.

    Args:
      image: uint8 [H, W, C], at least as large as the crop. If a margin is odd, its larger half is
        at the bottom or right.
      height: height of the crop in pixels.
      width: width in pixels; equal to the height by default.

    Returns:
      uint8 [height, width, C].
    """
    size = (height, width or height)
    _check_fits(image, size, 'central_crop')
    return _window(image, central_corner(tf_cpu().shape(image)[:2], size), size)


def central_crop_on_device(image: jax.Array, height: int, width: int | None = None) -> jax.Array:
    """Device form of `central_crop`; raises UserError if the image is too small."""
    size = (height, width or height)
    _check_fits_on_device(image, size)
    top, left = (central_corner(n, side) for n, side in zip(image.shape, size))
    return image[top : top + size[0], left : left + size[1]]


def central_corner(whole: Any, size: Any) -> Any:
    """Returns the start of a centred window, for one axis or for two: integers."""
    return (whole - size) // 2


def random_crop(
    image: Any, rng: Rng, height: int, width: int | None = None, padding: int = 0
) -> Any:
    """Pads an image with zeros and crops it at a random position.

    `random_crop(32, padding=4)` is the usual augmentation of CIFAR (ResNet, arXiv:1512.03385, 4.2).

    Args:
      height: height of the crop in pixels.
      width: width in pixels; equal to the height by default.
      padding: number of rows and columns of zeros on each side.

    Returns:
      uint8 [height, width, C]; every position is equally likely.
    """
    size = (height, width or height)
    image = pad(image, padding) if padding else image
    _check_fits(image, size, 'random_crop')
    return _window(image, random_corner(tf_cpu().shape(image)[:2], size, rng), size)


def random_crop_on_device(
    image: jax.Array, rng: DeviceRng, height: int, width: int | None = None, padding: int = 0
) -> jax.Array:
    """Device form of `random_crop`; raises UserError if the padded image is too small."""
    size = (height, width or height)
    image = pad_on_device(image, padding)
    _check_fits_on_device(image, size)
    top, left = random_corner(jnp.array(image.shape[:2]), jnp.array(size), rng)
    return jax.lax.dynamic_slice(image, (top, left, 0), (*size, image.shape[2]))


def random_corner(whole: Any, size: Any, rng: Rng | DeviceRng) -> Any:
    """Draws the top and left of a window, int32 [2]; every position is equally likely."""
    return rng.below(whole - size + 1)


def _window(image: Any, corner: Any, size: tuple[int, int]) -> Any:
    """Crops a window [*size, C] whose upper left corner is `corner`, int32 [2]."""
    tf = tf_cpu()
    top, left = tf.unstack(corner)
    window = image[top : top + size[0], left : left + size[1]]
    return tf.ensure_shape(window, [*size, image.shape[-1]])


def _check_fits(image: Any, size: tuple[int, int], op: str) -> None:
    """Checks that a window fits in an image: while tracing for a known shape, and in the graph."""
    for side, known in zip(size, image.shape[:2], strict=True):
        if known is not None and known < side:
            raise ValueError(_too_small(size, op))
    assert_fits(tf_cpu().shape(image)[:2], size, op)


def assert_fits(whole: Any, size: tuple[int, int], op: str) -> None:
    """Adds a check to the graph that a window fits in an image of size `whole`, int32 [2]."""
    tf = tf_cpu()
    tf.debugging.assert_greater_equal(whole, size, message=_too_small(size, op))


def _too_small(size: tuple[int, int], op: str) -> str:
    """Returns the message for an image that is smaller than the window."""
    return f'{op}{size}: the image is smaller; resize it first'


def _check_fits_on_device(image: jax.Array, size: tuple[int, int]) -> None:
    """Raises UserError if a window does not fit in an image."""
    if size[0] > image.shape[0] or size[1] > image.shape[1]:
        raise UserError(
            f'cannot crop {size[0]} x {size[1]} from an image of '
            f'{image.shape[0]} x {image.shape[1]}; resize it first'
        )


def random_box(
    height: Any,
    width: Any,
    rng: Rng,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Any:
    """Draws the box of Inception's random crop (GoogLeNet, arXiv:1409.4842, section 6).

    Ten boxes are drawn, with uniform area, log-uniform aspect ratio (width / height) and uniform
    position. The first box inside the image is returned. If there is none, the result is the
    largest central box with an allowed aspect ratio.

    Returns:
      top, left, height, width: int32 [4].
    """
    tf = tf_cpu()
    h, w = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    # Draw ten boxes and their positions.
    areas = h * w * rng.uniform(*area, shape=(10,))
    low, high = tf.unstack(tf.math.log(tf.constant(ratio, tf.float64)))
    aspects = tf.exp(low + (high - low) * rng.uniform(shape=(10,)))
    boxes_h, boxes_w = tf.round(tf.sqrt(areas / aspects)), tf.round(tf.sqrt(areas * aspects))
    # Take the first box inside the image.
    fits = (boxes_h >= 1) & (boxes_w >= 1) & (boxes_h <= h) & (boxes_w <= w)
    tops = tf.floor(rng.uniform(shape=(10,)) * (h - boxes_h + 1))
    lefts = tf.floor(rng.uniform(shape=(10,)) * (w - boxes_w + 1))
    boxes = tf.stack([tops, lefts, boxes_h, boxes_w], axis=1)
    first = tf.argmax(tf.cast(fits, tf.int32))
    fallback = _central_box(h, w, ratio)
    box = tf.where(tf.reduce_any(fits), boxes[first], fallback)
    return tf.cast(box, tf.int32)


def _central_box(h: Any, w: Any, ratio: tuple[float, float]) -> Any:
    """Returns the largest central box with an allowed aspect ratio: top, left, height, width."""
    tf = tf_cpu()
    # Limit the height by the smallest ratio, and the width by the largest.
    box_h = tf.maximum(tf.minimum(h, tf.round(w / ratio[0])), 1)
    box_w = tf.maximum(tf.minimum(w, tf.round(h * ratio[1])), 1)
    return tf.stack([(h - box_h) // 2, (w - box_w) // 2, box_h, box_w])


def random_resized_crop(
    image: Any,
    rng: Rng,
    height: int,
    width: int | None = None,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Any:
    """Crops a random box and resizes it bilinearly (GoogLeNet, arXiv:1409.4842, section 6).

    The box is that of `random_box`. Directly after `decode` the two ops run as one: only the box is
    decoded, with the fast DCT, and at 1/2, 1/4 or 1/8 of its resolution if that still has enough
    pixels.

    Args:
      height: height of the output in pixels.
      width: width in pixels; equal to the height by default.
      area: least and greatest area of the box, as a fraction of the image.
      ratio: least and greatest width / height of the box.

    Returns:
      uint8 [height, width, C].
    """
    tf = tf_cpu()
    shape = tf.shape(image)
    top, left, rows, columns = tf.unstack(random_box(shape[0], shape[1], rng, area, ratio))
    crop = image[top : top + rows, left : left + columns]
    crop.set_shape([None, None, image.shape[-1]])
    return resize_bilinear_fast(crop, (height, width or height))


def translate(image: Any, rng: Rng, pixels: int) -> Any:
    """Shifts an image along each axis by a whole number drawn uniformly from ± pixels.

    Uncovered pixels become zero.

    Args:
      pixels: largest shift.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    height, width = tf.unstack(tf.shape(image)[:2])
    # Crop from the padded image.
    top, left = tf.unstack(rng.below([2 * pixels + 1] * 2))
    shifted = pad(image, pixels)[top : top + height, left : left + width]
    return tf.ensure_shape(shifted, image.shape)


def translate_on_device(image: jax.Array, rng: DeviceRng, pixels: int) -> jax.Array:
    """Device form of `translate`."""
    height, width, _ = image.shape
    return random_crop_on_device(image, rng, height, width, padding=pixels)


def pad(image: Any, pixels: int, value: float = 0.0) -> Any:
    """Adds a border of constant value on each side.

    Args:
      pixels: width of the border.
      value: value of the border, 0 … 255.

    Returns:
      uint8 [H + 2·pixels, W + 2·pixels, C].
    """
    tf = tf_cpu()
    border = [[pixels, pixels], [pixels, pixels], [0, 0]]
    return tf.pad(image, border, constant_values=tf.cast(value, image.dtype))


def pad_on_device(image: jax.Array, pixels: int, value: float = 0.0) -> jax.Array:
    """Device form of `pad`; does not round `value`."""
    return jnp.pad(image, [(pixels, pixels), (pixels, pixels), (0, 0)], constant_values=value)


def flip_lr(image: Any, rng: Rng) -> Any:
    """Flips left and right with probability 0.5 (AlexNet, NIPS 2012, section 4.1).

    Returns:
      uint8 [H, W, C].
    """
    return _flip(image, rng, axis=1)


def flip_lr_on_device(image: jax.Array, rng: DeviceRng) -> jax.Array:
    """Device form of `flip_lr`."""
    return jnp.where(rng.chance(0.5), image[:, ::-1], image)


def flip_ud(image: Any, rng: Rng) -> Any:
    """Flips top and bottom with probability 0.5: uint8 [H, W, C] → uint8 [H, W, C]."""
    return _flip(image, rng, axis=0)


def _flip(image: Any, rng: Rng, axis: int) -> Any:
    """Reverses an axis with probability 0.5."""
    tf = tf_cpu()
    return tf.cond(rng.chance(0.5), lambda: tf.reverse(image, [axis]), lambda: image)
