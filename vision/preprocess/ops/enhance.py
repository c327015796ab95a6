"""The transformations of AutoAugment, RandAugment and TrivialAugment, with Pillow's arithmetic.

Each takes an image and a magnitude (a scalar, which some do not use), and returns an image; both
images are uint8 [H, W, C]. Geometric transformations take the nearest pixel and fill with black, as
in torchvision.
"""

import math
from collections.abc import Callable
from typing import Any

from vision.core.startup import tf_cpu
from vision.preprocess.ops.color import blend, grey, mean_grey
from vision.preprocess.ops.resampling import rotation, transform


def _identity(image: Any, _: Any) -> Any:
    return image


def _shear_x(image: Any, lean: Any) -> Any:
    """Shears horizontally about the upper left corner, as Pillow's affine transform does."""
    tf = tf_cpu()
    height = tf.cast(tf.shape(image)[0], tf.float64)
    return _warp(image, [[1.0, lean, lean * height / 2], [0.0, 1.0, 0.0]])


def _shear_y(image: Any, lean: Any) -> Any:
    """Shears vertically about the upper left corner."""
    tf = tf_cpu()
    width = tf.cast(tf.shape(image)[1], tf.float64)
    return _warp(image, [[1.0, 0.0, 0.0], [lean, 1.0, lean * width / 2]])


def _translate_x(image: Any, pixels: Any) -> Any:
    return _shift(image, pixels, axis=1)


def _translate_y(image: Any, pixels: Any) -> Any:
    return _shift(image, pixels, axis=0)


def _shift(image: Any, pixels: Any, axis: int) -> Any:
    """Shifts an axis by whole pixels, rounded towards zero, and fills with black."""
    tf = tf_cpu()
    pixels = tf.cast(pixels, tf.int32)
    size = tf.shape(image)[axis]
    pixels = tf.clip_by_value(pixels, -size, size)
    # Roll the axis, and blacken the pixels that were moved around the end.
    rolled = tf.roll(image, pixels, axis)
    place = tf.range(size) - pixels
    inside = (place >= 0) & (place < size)
    inside = inside[None, :, None] if axis == 1 else inside[:, None, None]
    return tf.where(inside, rolled, tf.zeros_like(rolled))


def _rotate(image: Any, degrees: Any) -> Any:
    return transform(image, rotation(degrees * (math.pi / 180)), nearest=True)


def _warp(image: Any, rows: list[list[Any]]) -> Any:
    """Applies an inverse affine map, given by the rows of its matrix [2, 3]."""
    tf = tf_cpu()
    matrix = tf.stack([tf.stack([tf.cast(v, tf.float64) for v in row]) for row in rows])
    return transform(image, matrix, nearest=True)


def _brightness(image: Any, change: Any) -> Any:
    return blend(0.0, image, 1 + change)


def _color(image: Any, change: Any) -> Any:
    return blend(_whole(grey(image)), image, 1 + change)


def _contrast(image: Any, change: Any) -> Any:
    return blend(mean_grey(image), image, 1 + change)


def _whole(values: Any) -> Any:
    """Rounds to whole numbers, halves up."""
    tf = tf_cpu()
    return tf.floor(values + 0.5)


def _sharpness(image: Any, change: Any) -> Any:
    """Blends with the image smoothed by Pillow's SMOOTH filter; its border is not smoothed."""
    tf = tf_cpu()
    values = tf.cast(image, tf.float32)
    # Treat the channels as a batch of grey images.
    columns = tf.transpose(values, [2, 0, 1])[..., None]
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
    # Pad images of one or two rows or columns for the 3 × 3 kernel; they consist of border only.
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    missing = [[0, 0], [0, tf.maximum(3 - height, 0)], [0, tf.maximum(3 - width, 0)], [0, 0]]
    columns = tf.pad(columns, missing)
    smooth = tf.nn.conv2d(columns, kernel[:, :, None, None], 1, 'VALID')
    smooth = _whole(tf.transpose(smooth[..., 0], [1, 2, 0]))
    inner = tf.pad(tf.ones_like(smooth, tf.bool), [[1, 1], [1, 1], [0, 0]])
    # Keep the original border.
    smooth = tf.pad(smooth, [[1, 1], [1, 1], [0, 0]])[:height, :width]
    inner = inner[:height, :width] & (height > 2) & (width > 2)
    return blend(tf.where(inner, smooth, values), image, 1 + change)


def _posterize(image: Any, bits: Any) -> Any:
    """Keeps only the leading bits of each value."""
    tf = tf_cpu()
    shift = tf.cast(8 - tf.cast(bits, tf.int32), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def _solarize(image: Any, threshold: Any) -> Any:
    """Inverts values at or above the threshold."""
    tf = tf_cpu()
    return tf.where(
        tf.cast(image, tf.float64) >= tf.cast(threshold, tf.float64), 255 - image, image
    )


def _autocontrast(image: Any, _: Any) -> Any:
    """Stretches each channel to 0 … 255; a constant channel does not change."""
    tf = tf_cpu()
    values = tf.cast(image, tf.float64)
    low = tf.reduce_min(values, [0, 1], keepdims=True)
    high = tf.reduce_max(values, [0, 1], keepdims=True)
    scale = 255 / tf.maximum(high - low, 1)
    # Pillow computes ix · scale − low · scale and truncates. Another order would round differently.
    stretched = tf.floor(tf.clip_by_value(values * scale - low * scale, 0, 255))
    return tf.where(high > low, tf.cast(stretched, tf.uint8), image)


def _equalize(image: Any, _: Any) -> Any:
    """Equalises the histogram of each channel."""
    tf = tf_cpu()
    return tf.stack([_equalize_channel(c) for c in tf.unstack(image, axis=-1)], -1)


def _equalize_channel(channel: Any) -> Any:
    """Equalises one channel with Pillow's integer arithmetic (ImageOps.equalize)."""
    tf = tf_cpu()
    index = tf.cast(channel, tf.int32)
    histogram = tf.math.bincount(tf.reshape(index, [-1]), minlength=256, maxlength=256)
    last = tf.reduce_max(tf.where(histogram > 0, tf.range(256), 0))
    # Build the lookup table as Pillow does.
    step = (tf.reduce_sum(histogram) - histogram[last]) // 255
    lookup = (tf.cumsum(histogram, exclusive=True) + step // 2) // tf.maximum(step, 1)
    equal = tf.cast(tf.gather(tf.minimum(lookup, 255), index), tf.uint8)
    return tf.where(step > 0, equal, channel)


def _invert(image: Any, _: Any) -> Any:
    return 255 - image


_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    'Identity': _identity,
    'ShearX': _shear_x,
    'ShearY': _shear_y,
    'TranslateX': _translate_x,
    'TranslateY': _translate_y,
    'Rotate': _rotate,
    'Brightness': _brightness,
    'Color': _color,
    'Contrast': _contrast,
    'Sharpness': _sharpness,
    'Posterize': _posterize,
    'Solarize': _solarize,
    'AutoContrast': _autocontrast,
    'Equalize': _equalize,
    'Invert': _invert,
}
NAMES = tuple(_FUNCTIONS)


def apply_one(image: Any, index: Any, magnitude: Any) -> Any:
    """Applies the transformation NAMES[index]; `index` is an int32 scalar tensor."""
    tf = tf_cpu()
    functions = _FUNCTIONS.values()
    # The default argument binds each function to its own branch.
    result = tf.switch_case(index, [lambda f=f: f(image, magnitude) for f in functions])
    return tf.ensure_shape(result, image.shape)
