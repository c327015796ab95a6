"""Pairs of ops that are done in one, so that only what is kept of a picture is computed.

`decode|random_resized_crop` decodes the box alone, at reduced scale where that is enough. A crop that follows a resize of
the shorter side computes the crop's pixels alone: `decode|resize_small(256)|central_crop(224)` of a 500 × 375 JPEG takes 4 ms in
place of 6, and `scale_jitter(256, 480)|random_crop(224)` saves more. Its sampling points are rounded in another order, so that a
few pixels in a hundred thousand (in a thousand, at scales such as 6/5) differ by one from what the two ops give in turn.
"""

from typing import Any

from vision.core.startup import tf_cpu
from vision.preprocess import opstring
from vision.preprocess.ops import crops, resampling
from vision.preprocess.ops.decode import decode, is_plain_jpeg, read_in_graph
from vision.preprocess.ops.registry import Rng

Rngs = tuple[Any, Any]  # each op's `Rng`; None of one that draws nothing

# tf.image.resize's names of the methods that can begin anywhere, and of their kernels.
_KERNELS = {'bilinear': 'triangle', 'bicubic': 'keyscubic'}


def can_fuse(first: opstring.Op, second: opstring.Op) -> bool:
    """True if `apply` does these two ops, which follow each other."""
    if (first.name, second.name) == ('decode', 'random_resized_crop'):
        return True
    if first.name not in ('resize_small', 'scale_jitter'):
        return False
    resize = opstring.arguments(first, getattr(resampling, first.name))
    plain = resize.get('method', 'bilinear') in _KERNELS and resize.get('antialias', True)
    if second.name == 'random_crop':
        return plain and not opstring.arguments(second, crops.random_crop)['padding']
    return plain and second.name == 'central_crop'


def apply(first: opstring.Op, second: opstring.Op, image: Any, rngs: Rngs) -> Any:
    """Does two ops in one.

    Args:
      first: an op.
      second: the op after it; `can_fuse(first, second)`.
      image: what the first one takes: encoded bytes, or uint8 [H, W, C].
      rngs: each op's random numbers; None of one that draws none.

    Returns:
      uint8 [H', W', C].
    """
    if first.name != 'decode':
        return _resize_and_crop(first, second, image, rngs)
    channels = opstring.arguments(first, decode)['channels']
    arguments = opstring.arguments(second, crops.random_resized_crop)
    if image.dtype != 'string':
        return crops.random_resized_crop(decode(image, channels), rngs[1], **arguments)
    return _decode_random_resized_crop(image, rngs[1], channels, **arguments)


def _resize_and_crop(first: opstring.Op, second: opstring.Op, image: Any, rngs: Rngs) -> Any:
    tf = tf_cpu()
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
    """`decode(channels)` and `random_resized_crop(…)` in one: bytes → uint8 [height, width, C]."""
    tf = tf_cpu()
    size = (height, width or height)

    def fused() -> Any:
        shape = tf.io.extract_jpeg_shape(data)
        window = crops.random_box(shape[0], shape[1], rng, area, ratio)
        return resampling.resize_bilinear_fast(_decode_window(data, window, channels, size), size)

    def separate() -> Any:
        image = read_in_graph(data, channels)
        return crops.random_resized_crop(image, rng.again(), *size, area, ratio)

    return tf.cond(is_plain_jpeg(data), fused, separate)


def _decode_window(data: Any, window: Any, channels: int, size: tuple[int, int]) -> Any:
    """Decodes a window of a JPEG, at the least of the scales 1/8 … 1 that keeps `size` pixels, less one for rounding."""
    tf = tf_cpu()
    spare = tf.minimum(window[2] // size[0], window[3] // size[1])

    def at(scale: int) -> Any:
        # Inwards, so that the window never leaves the scaled picture.
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
