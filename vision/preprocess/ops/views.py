"""Ops that make several views of an image for evaluation: uint8 [H, W, C] → [V, h, w, C].

The model is applied to all views of an example, and its outputs are averaged.
"""

from typing import Any

from vision.core.startup import tf_cpu
from vision.preprocess.ops.crops import central_crop
from vision.preprocess.ops.resampling import resize_small


def ten_crop(image: Any, size: int) -> Any:
    """Crops the four corners and the centre, and flips them (AlexNet, NIPS 2012, section 4.1).

    Args:
      image: uint8 [H, W, C], at least `size` on each side.
      size: side of the crops in pixels.

    Returns:
      uint8 [10, size, size, C]: upper left, upper right, lower left, lower right and centre, then
      the same five flipped.
    """
    tf = tf_cpu()
    centre = central_crop(image, size)
    crops = tf.stack(
        [
            image[:size, :size],
            image[:size, -size:],
            image[-size:, :size],
            image[-size:, -size:],
            centre,
        ]
    )
    # Append the flipped crops.
    crops = tf.concat([crops, tf.reverse(crops, [2])], 0)
    return tf.ensure_shape(crops, [10, size, size, image.shape[-1]])


def multi_scale_crops(image: Any, size: int, scales: tuple[int, ...]) -> Any:
    """Applies `ten_crop` at several scales.

    As in ResNet (arXiv:1512.03385, 3.4) and VGG (arXiv:1409.1556, 3.2).

    Args:
      size: side of the crops in pixels.
      scales: lengths of the shorter side; ResNet uses 224, 256, 384, 480, 640.

    Returns:
      uint8 [10 · len(scales), size, size, C], scale by scale.
    """
    tf = tf_cpu()
    return tf.concat([ten_crop(resize_small(image, s), size) for s in scales], 0)


def inception_crops(image: Any, size: int, scales: tuple[int, ...] = (256, 288, 320, 352)) -> Any:
    """Makes the 144 crops of GoogLeNet with the default four scales (arXiv:1409.4842, section 7).

    Each scale has three squares (left, centre, right; or top, centre, bottom). A square gives
    twelve views: crops of its four corners and its centre, the whole square resized, and the six
    flipped images of these.

    Args:
      size: side of the crops in pixels.
      scales: lengths of the shorter side.

    Returns:
      uint8 [36 · len(scales), size, size, C].
    """
    tf = tf_cpu()
    views = []
    for scale in scales:
        resized = resize_small(image, scale)
        room = tf.shape(resized)[:2] - scale
        # Cut the three squares along the longer side.
        for begin in (room * 0, room // 2, room):
            square = resized[begin[0] : begin[0] + scale, begin[1] : begin[1] + scale]
            square = tf.ensure_shape(square, [scale, scale, image.shape[-1]])
            whole = resize_small(square, size)
            whole = tf.ensure_shape(whole, [size, size, image.shape[-1]])
            views += [ten_crop(square, size), tf.stack([whole, tf.reverse(whole, [1])])]
    return tf.concat(views, 0)
