"""Fused pairs of ops, which compute only the pixels that the second op keeps.

`decode|random_resized_crop` decodes only the box, at reduced resolution if that is enough. For a
crop after a resize of the shorter side, only the pixels of the crop are computed:
`decode|resize_small(256)|central_crop(224)` of a 500 × 375 JPEG takes 4 ms instead of 6, and
`scale_jitter(256, 480)|random_crop(224)` saves more. Because the sampling points are rounded in
another order, a few pixels in 100,000 (a few in 1,000 at scales such as 6/5) differ by one from the
result of the two separate ops.
"""

from typing import Any

from vision.core.startup import tf_cpu
from vision.preprocess import opstring
from vision.preprocess.ops import crops, resampling
from vision.preprocess.ops.decode import decode, is_plain_jpeg, read_in_graph
from vision.preprocess.ops.registry import Rng

Rngs = tuple[Any, Any]  # the `Rng` of each op; None for an op without random numbers

# Methods of tf.image.resize for which a part of the result can be computed alone, and the names of
# their kernels.
_KERNELS = {'bilinear': 'triangle', 'bicubic': 'keyscubic'}


def can_fuse(first: opstring.Op, second: opstring.Op) -> bool:
    """True if `apply` supports these two consecutive ops."""
    if (first.name, second.name) == ('decode', 'random_resized_crop'):
        return True
    if first.name not in ('resize_small', 'scale_jitter'):
        return False
    resize = opstring.arguments(first, getattr(resampling, first.name))
    # A part of the result can be computed alone only for these methods, with antialiasing.
    plain = resize.get('method', 'bilinear') in _KERNELS and resize.get('antialias', True)
    if second.name == 'random_crop':
        return plain and not opstring.arguments(second, crops.random_crop)['padding']
    return plain and second.name == 'central_crop'


def apply(first: opstring.Op, second: opstring.Op, image: Any, rngs: Rngs) -> Any:
    """Applies two ops as one.

    Args:
      first: the first op.
      second: the op after it; `can_fuse(first, second)` must be true.
      image: the input of the first op: encoded bytes, or uint8 [H, W, C].
      rngs: the random numbers of each op; None for an op without them.

    Returns:
      uint8 [H', W', C].
    """
    if first.name != 'decode':
        return _resize_and_crop(first, second, image, rngs)
    channels = opstring.arguments(first, decode)['channels']
    arguments = opstring.arguments(second, crops.random_resized_crop)
    # An image that is decoded already is only cropped and resized.
    if image.dtype != 'string':
        return crops.random_resized_crop(decode(image, channels), rngs[1], **arguments)
    return _decode_random_resized_crop(image, rngs[1], channels, **arguments)


def _resize_and_crop(first: opstring.Op, second: opstring.Op, image: Any, rngs: Rngs) -> Any:
    """Applies `resize_small` or `scale_jitter`, then `central_crop` or `random_crop`."""
    tf = tf_cpu()
    # Find the size of the resized image, and the corner of the crop in it.
    resize = opstring.arguments(first, getattr(resampling, first.name))
    crop = opstring.arguments(second, getattr(crops, second.name))
    size = (crop['height'], crop['width'] or crop['height'])
    jitter = first.name == 'scale_jitter'
    whole = resampling.short_side_to(
        image, resampling.jittered(rngs[0], **resize) if jitter else resize['size']
    )
    crops.assert_fits(whole, size, second.name)
    if second.name == 'central_crop':
        corner = crops.central_corner(whole, size)
    else:
        corner = crops.random_corner(whole, size, rngs[1])
    # Compute only the pixels of the crop.
    values = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=size,
        scale=tf.cast(whole, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32),
        translation=-tf.cast(corner, tf.float32),
        kernel_type=_KERNELS[resize.get('method', 'bilinear')],
        antialias=True,
    )
    return tf.ensure_shape(resampling.to_uint8(values[0]), [*size, image.shape[-1]])


def _decode_random_resized_crop(
    data: Any,
    rng: Rng,
    channels: int,
    height: int,
    width: int | None,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Any:
    """Applies `decode(channels)` and `random_resized_crop(…)`: bytes → uint8 [height, width, C]."""
    tf = tf_cpu()
    size = (height, width or height)

    def fused() -> Any:
        # Read the size from the header, without decoding.
        shape = tf.io.extract_jpeg_shape(data)
        window = crops.random_box(shape[0], shape[1], rng, area, ratio)
        return resampling.resize_bilinear_fast(_decode_window(data, window, channels, size), size)

    def separate() -> Any:
        image = read_in_graph(data, channels)
        return crops.random_resized_crop(image, rng.again(), *size, area, ratio)

    return tf.cond(is_plain_jpeg(data), fused, separate)


def _decode_window(data: Any, window: Any, channels: int, size: tuple[int, int]) -> Any:
    """Decodes a window of a JPEG at reduced resolution.

    The scale is the smallest of 1/8, 1/4, 1/2 and 1 at which the window has at least the height and
    width of `size`, possibly less one pixel, because the window's edges are rounded inwards.
    """
    tf = tf_cpu()
    # The factor by which the window is larger than the output.
    spare = tf.minimum(window[2] // size[0], window[3] // size[1])

    def at(scale: int) -> Any:
        # Round inwards, so that the window stays inside the scaled image.
        begin = -(-window[:2] // scale)
        end = (window[:2] + window[2:]) // scale
        image = tf.raw_ops.DecodeAndCropJpeg(
            contents=data,
            crop_window=tf.concat([begin, end - begin], 0),
            channels=channels,
            ratio=scale,
            fancy_upscaling=False,
            dct_method='INTEGER_FAST',
        )
        return tf.ensure_shape(image, [None, None, channels])

    return tf.cond(
        spare < 2,
        lambda: at(1),
        lambda: tf.cond(
            spare < 4, lambda: at(2), lambda: tf.cond(spare < 8, lambda: at(4), lambda: at(8))
        ),
    )
