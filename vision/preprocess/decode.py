"""Encoded bytes → uint8 [H, W, C], as people expect to see the picture.

Plain JPEGs, which is nearly all of every large data set, are decoded by TensorFlow. Whatever it
would get wrong or cannot read (EXIF rotation, CMYK, 16 bit, alpha, palettes, WebP, BMP, GIF,
anything with an unusual header) is read by Pillow, in `read`:

* CMYK is converted to RGB, grey is repeated, 16-bit grey is scaled to 8 bits;
* what is transparent is laid on white, as a browser does: dropping the alpha channel would show
  colours that nobody was meant to see;
* the first frame of an animation is taken; EXIF's orientation is applied.

A JPEG that ends before its end marker is refused, though part of the picture is there. One that is
damaged inside and does have its end marker is read as browsers read it: what comes before the
damage is intact, libjpeg goes on behind it as best it can, and neither TensorFlow nor Pillow can
tell that it did (JPEG has no checksum; libjpeg's warning goes to stderr). What libjpeg refuses is refused.
"""

import functools
import io
import warnings
from typing import Any

import numpy as np

from vision.core.tf_cpu import tf_cpu
from vision.data.source import BadImage

MAX_PIXELS = 200_000_000  # the largest phone cameras; 600 MB as RGB
# Longer side over shorter: resized by its shorter side, a strip of pixels would fill the memory.
MAX_ASPECT = 100


def read(data: bytes, channels: int = 3) -> np.ndarray:
    """Reads any image with Pillow.

    Args:
      data: an encoded image.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [H, W, channels].

    Raises:
      BadImage: it is no image, is cut off, claims more than MAX_PIXELS, or is a mere strip.
    """
    from PIL import ImageOps, UnidentifiedImageError

    Image = _pillow()
    if not data:
        raise BadImage('empty file')
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise BadImage('not an image') from None
    except Exception as e:  # Pillow's plugins raise whatever the damage leads them to
        raise BadImage(f'damaged header ({e})') from None
    _check_size(*image.size)
    try:
        image.load()
        return _to_array(ImageOps.exif_transpose(image), channels)
    except Exception as e:
        name = image.format or 'image'
        cut = any(sign in str(e).lower() for sign in ('truncated', 'not enough image data'))
        raise BadImage(f'truncated {name}' if cut else f'damaged {name} ({e})') from None


@functools.cache
def _pillow() -> Any:
    """`PIL.Image`, whose own limit on pixels, which only warns at first, makes way for ours."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings('ignore', module='PIL')  # damaged EXIF, of which millions exist
    return Image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(
            f'claims {width}x{height} pixels; the limit is {MAX_PIXELS // 1_000_000} million'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f'is a strip of {width}x{height} pixels; the limit is {MAX_ASPECT} to 1')


def _to_array(image: Any, channels: int) -> np.ndarray:
    from PIL import Image

    if image.mode.startswith('I') or image.mode == 'F':
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert('RGB' if channels == 3 else 'L')
    array = np.asarray(image)
    return array if channels == 3 else array[:, :, None]


def _to_8_bit(image: Any) -> Any:
    """Scales 16-bit grey (modes I;16 and I) to 8 bits; Pillow's own conversion clips at 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if image.mode == 'F':
        values = values * (255.0 if values.max(initial=0) <= 1 else 1.0)
    else:
        values = values / 257.0
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _jpeg_needs_pillow(data: bytes) -> bool:
    """Whether a JPEG's header has an EXIF orientation, or is not as it should be."""
    try:
        image = _pillow().open(io.BytesIO(data))
        _check_size(*image.size)
        return image.getexif().get(0x0112, 1) != 1
    except Exception:
        return True


def is_plain_jpeg(data: Any) -> Any:
    """Whether TensorFlow reads these bytes as Pillow does: a boolean scalar, in the graph.

    A JPEG that ends with its end marker (so that it is not cut off), of one or three components,
    no more than MAX_PIXELS and no strip, that is upright. A file that begins with EXIF or some other
    application's data is looked at in Python; the others, by far the most, are not.
    """
    tf = tf_cpu()
    head = tf.strings.substr(data, 0, 4)
    is_jpeg = tf.strings.substr(data, 0, 3) == b'\xff\xd8\xff'
    is_whole = tf.strings.substr(data, -2, 2) == b'\xff\xd9'

    def look() -> Any:
        second = _marker_after_jfif(data, head)
        ordinary = tf.reduce_any(second == tf.constant([b'\xff\xdb', b'\xff\xc0', b'\xff\xc4']))
        upright = tf.cond(ordinary, lambda: True, lambda: tf.logical_not(_ask_pillow(data)))
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
    answer = tf.numpy_function(lambda d: np.bool_(_jpeg_needs_pillow(d)), [data], tf.bool)
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
    """Decodes an image, upright and with that many channels; see the module's docstring.

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
