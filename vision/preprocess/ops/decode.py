"""The op `decode`, which decodes images in the TensorFlow graph to uint8 [H, W, C].

TensorFlow decodes plain JPEGs, nearly all images of large data sets. Pillow decodes all images that
TensorFlow would read wrongly or not at all: EXIF rotation, colour profiles, CMYK, 16 bits, alpha,
palettes, WebP, BMP, GIF, and unusual headers (`vision.preprocess.decode.read`).
"""

from typing import Any

import numpy as np

from vision.core.startup import tf_cpu
from vision.preprocess.decode import MAX_ASPECT, MAX_PIXELS, jpeg_needs_pillow, read

_HEADER = 1024  # bytes to search for tags; the tables of a JPEG without tags take about 600
_TAGS = r'\C*(Exif\x00|ICC_PROFILE)\C*'


def is_plain_jpeg(data: Any) -> Any:
    """True if TensorFlow decodes these bytes as Pillow does; a boolean scalar in the graph.

    Such a file is a JPEG with an end marker (so it is not cut off), one or three components, a size
    within MAX_PIXELS and MAX_ASPECT, upright and in sRGB. The headers of files with EXIF or other
    application data are checked in Python; most files have none.
    """
    tf = tf_cpu()
    head = tf.strings.substr(data, 0, 4)
    is_jpeg = tf.strings.substr(data, 0, 3) == b'\xff\xd8\xff'
    is_whole = tf.strings.substr(data, -2, 2) == b'\xff\xd9'

    def look() -> Any:
        # A file whose tables directly follow the start, and that has no tags, needs no Pillow.
        second = _marker_after_jfif(data, head)
        tables = tf.reduce_any(second == tf.constant([b'\xff\xdb', b'\xff\xc0', b'\xff\xc4']))
        # Tags may also follow the tables.
        tagged = tf.strings.regex_full_match(tf.strings.substr(data, 0, _HEADER), _TAGS)
        plain = tf.logical_and(tables, tf.logical_not(tagged))
        upright = tf.cond(plain, lambda: True, lambda: tf.logical_not(_ask_pillow(data)))
        return tf.logical_and(upright, _shape_is_plain(data))

    return tf.cond(tf.logical_and(is_jpeg, is_whole), look, lambda: False)


def _marker_after_jfif(data: Any, head: Any) -> Any:
    """Returns the first JPEG marker after the JFIF segment, if there is one."""
    tf = tf_cpu()
    marker = tf.strings.substr(head, 2, 2)
    # The length of the JFIF segment, big-endian.
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
    """TensorFlow op for `jpeg_needs_pillow`."""
    tf = tf_cpu()
    answer = tf.numpy_function(lambda d: np.bool_(jpeg_needs_pillow(d)), [data], tf.bool)
    return tf.ensure_shape(answer, [])


def _shape_is_plain(data: Any) -> Any:
    """True if a JPEG has one or three components and a size within the limits."""
    tf = tf_cpu()
    shape = tf.io.extract_jpeg_shape(data, output_type=tf.int32)
    height, width = tf.cast(shape[0], tf.int64), tf.cast(shape[1], tf.int64)
    pixels = height * width
    colours = (shape[2] == 1) | (shape[2] == 3)
    no_strip = tf.maximum(height, width) <= MAX_ASPECT * tf.minimum(height, width)
    return colours & (pixels > 0) & (pixels <= MAX_PIXELS) & no_strip


def read_in_graph(data: Any, channels: int) -> Any:
    """TensorFlow op for `read`: bytes → uint8 [H, W, channels]."""
    tf = tf_cpu()
    image = tf.numpy_function(lambda d: read(d, channels), [data], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, channels])


def decode(image: Any, channels: int = 3) -> Any:
    """Decodes an image upright, with a given number of channels (see `vision.preprocess.decode`).

    Args:
      image: encoded bytes, a string scalar; for a decoded image only the channels are converted.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [H, W, channels].
    """
    tf = tf_cpu()
    if image.dtype != tf.string:
        return to_channels(image, channels)
    # TensorFlow for plain JPEGs, Pillow for everything else.
    return tf.cond(
        is_plain_jpeg(image),
        lambda: tf.io.decode_jpeg(image, channels, dct_method='INTEGER_ACCURATE'),
        lambda: read_in_graph(image, channels),
    )


def to_channels(image: Any, channels: int) -> Any:
    """Converts a decoded image between grey and RGB: uint8 [H, W, 1 or 3] → [H, W, channels]."""
    tf = tf_cpu()
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return tf.image.grayscale_to_rgb(image)
    return tf.image.rgb_to_grayscale(image)
