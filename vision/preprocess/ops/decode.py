"""Decoding in the graph: encoded bytes → uint8 [H, W, C], by TensorFlow or by Pillow.

Plain JPEGs, which is nearly all of every large data set, are decoded by TensorFlow. Whatever it
would get wrong or cannot read (EXIF rotation, profiles of colour, CMYK, 16 bit, alpha, palettes, WebP, BMP, GIF,
anything with an unusual header) is read by Pillow, in `vision.preprocess.decode.read`.
"""

from typing import Any

import numpy as np

from vision.core.startup import tf_cpu
from vision.preprocess.decode import MAX_ASPECT, MAX_PIXELS, jpeg_needs_pillow, read

_HEADER = 1024  # bytes: without tags a JPEG's tables take some 600
_TAGS = r'\C*(Exif\x00|ICC_PROFILE)\C*'


def is_plain_jpeg(data: Any) -> Any:
    """True if TensorFlow reads these bytes as Pillow does: a boolean scalar, in the graph.

    A JPEG that ends with its end marker (so that it is not cut off), of one or three components,
    no more than MAX_PIXELS and no strip, that is upright and in sRGB. A file that begins with EXIF or some other
    application's data is looked at in Python; the others, by far the most, are not.
    """
    tf = tf_cpu()
    head = tf.strings.substr(data, 0, 4)
    is_jpeg = tf.strings.substr(data, 0, 3) == b'\xff\xd8\xff'
    is_whole = tf.strings.substr(data, -2, 2) == b'\xff\xd9'

    def look() -> Any:
        second = _marker_after_jfif(data, head)
        tables = tf.reduce_any(second == tf.constant([b'\xff\xdb', b'\xff\xc0', b'\xff\xc4']))
        # Tags may follow the tables, too.
        tagged = tf.strings.regex_full_match(tf.strings.substr(data, 0, _HEADER), _TAGS)
        plain = tf.logical_and(tables, tf.logical_not(tagged))
        upright = tf.cond(plain, lambda: True, lambda: tf.logical_not(_ask_pillow(data)))
        return tf.logical_and(upright, _shape_is_plain(data))

    return tf.cond(tf.logical_and(is_jpeg, is_whole), look, lambda: False)


def _marker_after_jfif(data: Any, head: Any) -> Any:
    """The first marker that is not JFIF's own segment."""
    tf = tf_cpu()
    marker = tf.strings.substr(head, 2, 2)
    sizes = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 4, 2), tf.uint8), tf.int32)

    def skip() -> Any:
        start = 4 + sizes[0] * 256 + sizes[1]
        return tf.cond(
            start + 2 <= tf.strings.length(data),
            lambda: tf.strings.substr(data, start, 2),
            lambda: tf.constant(b''),
        )

    return tf.cond(marker == b'\xff\xe0', skip, lambda: marker)


def _ask_pillow(data: Any) -> Any:
    tf = tf_cpu()
    answer = tf.numpy_function(lambda d: np.bool_(jpeg_needs_pillow(d)), [data], tf.bool)
    return tf.ensure_shape(answer, [])


def _shape_is_plain(data: Any) -> Any:
    tf = tf_cpu()
    shape = tf.io.extract_jpeg_shape(data, output_type=tf.int32)
    height, width = tf.cast(shape[0], tf.int64), tf.cast(shape[1], tf.int64)
    pixels = height * width
    colours = (shape[2] == 1) | (shape[2] == 3)
    no_strip = tf.maximum(height, width) <= MAX_ASPECT * tf.minimum(height, width)
    return colours & (pixels > 0) & (pixels <= MAX_PIXELS) & no_strip


def read_in_graph(data: Any, channels: int) -> Any:
    """`read` as a TensorFlow op: bytes → uint8 [H, W, channels]."""
    tf = tf_cpu()
    image = tf.numpy_function(lambda d: read(d, channels), [data], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, channels])


def decode(image: Any, channels: int = 3) -> Any:
    """Decodes an image, upright and with that many channels; see `vision.preprocess.decode`.

    Args:
      image: encoded bytes, a string scalar. An image that is decoded already is passed on.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [H, W, channels].
    """
    tf = tf_cpu()
    if image.dtype != tf.string:
        return to_channels(image, channels)
    return tf.cond(
        is_plain_jpeg(image),
        lambda: tf.io.decode_jpeg(image, channels, dct_method='INTEGER_ACCURATE'),
        lambda: read_in_graph(image, channels),
    )


def to_channels(image: Any, channels: int) -> Any:
    """Converts a decoded image to that many channels: uint8 [H, W, 1 or 3] → [H, W, channels]."""
    tf = tf_cpu()
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return tf.image.grayscale_to_rgb(image)
    return tf.image.rgb_to_grayscale(image)
