"""Ops that move pixels: rotations, shears, zooms, shifts, elastic distortions; and erasing."""

import math
from typing import Any

from vision.core.tf_cpu import tf_cpu
from vision.preprocess.draws import Rng
from vision.preprocess.geometry import pad, random_crop, to_uint8


def transform(image: Any, inverse: Any, fill: float = 0.0, nearest: bool = False) -> Any:
    """Resamples the image about its centre.

    Args:
      image: uint8 [H, W, C].
      inverse: float [2, 3], from (x, y, 1) of the result to (x, y) of the image, both measured
        from the centre, in pixels.
      fill: what comes in from outside, 0 … 255.
      nearest: takes the nearest pixel; else bilinear.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    inverse = tf.cast(inverse, tf.float32)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    cy, cx = (size[0] - 1) / 2, (size[1] - 1) / 2
    (a, b, c), (d, e, f) = (tf.unstack(row) for row in tf.unstack(inverse))
    # From the corner instead of the centre, as the kernel wants it.
    matrix = [a, b, c + cx - a * cx - b * cy, d, e, f + cy - d * cx - e * cy, 0.0, 0.0]
    result = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None] if nearest else tf.cast(image, tf.float32)[None],
        transforms=tf.stack(matrix)[None],
        output_shape=tf.shape(image)[:2],
        interpolation='NEAREST' if nearest else 'BILINEAR',
        fill_mode='CONSTANT',
        fill_value=float(fill),
    )[0]
    return tf.ensure_shape(result if nearest else to_uint8(result), image.shape)


def _matrix(rows: list[list[Any]]) -> Any:
    tf = tf_cpu()
    return tf.stack([tf.stack([tf.cast(v, tf.float64) for v in row]) for row in rows])


def rotate(image: Any, rng: Rng, degrees: float, fill: float = 0.0) -> Any:
    """Rotates about the centre by an angle uniform in ± degrees, bilinear.

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      degrees: counter-clockwise is positive.
      fill: what comes in from outside, 0 … 255.

    Returns:
      uint8 [H, W, C].
    """
    angle = rng.uniform(-degrees, degrees) * (math.pi / 180)
    return transform(image, rotation(angle), fill)


def rotation(radians: Any) -> Any:
    """The inverse map of a counter-clockwise rotation, y pointing down: float64 [2, 3]."""
    tf = tf_cpu()
    cos, sin = tf.cos(radians), tf.sin(radians)
    return _matrix([[cos, -sin, 0.0], [sin, cos, 0.0]])


def zoom(image: Any, rng: Rng, low: float, high: float, fill: float = 0.0) -> Any:
    """Magnifies about the centre by a factor uniform in low … high, bilinear.

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      low: above 0; below 1 the picture becomes smaller and its border is filled.
      high: at least low.
      fill: what comes in from outside, 0 … 255.

    Returns:
      uint8 [H, W, C].
    """
    inverse = 1 / rng.uniform(low, high)
    return transform(image, _matrix([[inverse, 0.0, 0.0], [0.0, inverse, 0.0]]), fill)


def translate(image: Any, rng: Rng, pixels: int) -> Any:
    """Shifts by whole pixels, each way uniform in ± pixels; zeros come in.

    Args:
      image: uint8 [H, W, C], of known size.
      rng: the op's random numbers.
      pixels: the greatest shift.

    Returns:
      uint8 [H, W, C].
    """
    if image.shape[0] is None or image.shape[1] is None:
        tf = tf_cpu()
        height, width = tf.unstack(tf.shape(image)[:2])
        top, left = rng.below(2 * pixels + 1), rng.below(2 * pixels + 1)
        shifted = pad(image, pixels)[top : top + height, left : left + width]
        return tf.ensure_shape(shifted, image.shape)
    return random_crop(image, rng, image.shape[0], image.shape[1], padding=pixels)


def shear(image: Any, rng: Rng, degrees: float, fill: float = 0.0) -> Any:
    """Shears horizontally by an angle uniform in ± degrees, bilinear.

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      degrees: of the angle by which vertical lines lean.
      fill: what comes in from outside, 0 … 255.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    lean = tf.tan(rng.uniform(-degrees, degrees) * (math.pi / 180))
    return transform(image, _matrix([[1.0, lean, 0.0], [0.0, 1.0, 0.0]]), fill)


def affine(
    image: Any,
    rng: Rng,
    degrees: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> Any:
    """A random affine map about the centre, bilinear, zeros outside.

    The planar distortions of LeNet (LeCun et al. 1998, III.B): translation, scaling, squeezing,
    horizontal shearing.

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      degrees: rotation is uniform in ± degrees.
      scale: each axis is scaled by its own factor, uniform in 1 ± scale.
      shear: horizontal shear is uniform in ± shear (tangent of the angle).
      shift: translation of each axis is uniform in ± shift pixels.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    turn, scale_x, scale_y, lean, dx, dy = tf.unstack(rng.uniform(-1, 1, shape=(6,)))
    turned = rotation(turn * (degrees * math.pi / 180))[:, :2]
    squeeze = _matrix([[1 + scale * scale_x, shear * lean], [0.0, 1 + scale * scale_y]])
    inverse = tf.linalg.inv(squeeze) @ turned
    offset = -tf.linalg.matvec(inverse, shift * tf.stack([dx, dy]))
    return transform(image, tf.concat([inverse, offset[:, None]], 1))


def elastic(image: Any, rng: Rng, alpha: float, sigma: float) -> Any:
    """Elastic distortion (Simard, Steinkraus and Platt 2003, section 2), bilinear, zeros outside.

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      alpha: the displacements are uniform noise in ± 1, smoothed, times alpha pixels.
      sigma: standard deviation of the Gaussian that smooths them, in pixels.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    size = tf.shape(image)[:2]
    noise = tf.random.stateless_uniform(
        tf.concat([size, [2]], 0), rng.field_seed(), -1, 1, tf.float32, alg='philox'
    )
    return displace(image, alpha * gaussian_blur(noise, sigma))


def gaussian_blur(field: Any, sigma: float) -> Any:
    """Smooths a field, zeros outside, kernel cut at 4 sigma: float32 [H, W, D] → the same."""
    tf = tf_cpu()
    radius = math.ceil(4 * sigma)
    kernel = tf.exp(-0.5 * (tf.range(-radius, radius + 1, dtype=tf.float32) / sigma) ** 2)
    kernel = kernel / tf.reduce_sum(kernel)
    columns = tf.transpose(field, [2, 0, 1])[..., None]
    columns = tf.nn.conv2d(columns, kernel[:, None, None, None], 1, 'SAME')
    columns = tf.nn.conv2d(columns, kernel[None, :, None, None], 1, 'SAME')
    return tf.transpose(columns[..., 0], [1, 2, 0])


def displace(image: Any, displacement: Any) -> Any:
    """Takes each pixel from (y, x) + displacement: uint8 [H, W, C], float32 [H, W, 2]."""
    tf = tf_cpu()
    height, width = tf.unstack(tf.shape(image)[:2])
    y, x = tf.meshgrid(tf.range(height), tf.range(width), indexing='ij')
    position = tf.cast(tf.stack([y, x], -1), tf.float32) + displacement
    low = tf.floor(position)
    weight = position - low
    low = tf.cast(low, tf.int32)
    padded = tf.cast(pad(image, 1), tf.float32)
    limit = tf.stack([height + 1, width + 1])

    def corner(dy: int, dx: int) -> Any:
        index = tf.clip_by_value(low + [dy, dx] + 1, 0, limit)
        wy = weight[..., :1] if dy else 1 - weight[..., :1]
        wx = weight[..., 1:] if dx else 1 - weight[..., 1:]
        return tf.gather_nd(padded, index) * wy * wx

    total = corner(0, 0) + corner(0, 1) + corner(1, 0) + corner(1, 1)
    return tf.ensure_shape(to_uint8(total), image.shape)


def cutout(image: Any, rng: Rng, size: int, value: float = 0.0) -> Any:
    """Blanks a square about a random centre, cut off at the border (Cutout, arXiv:1708.04552, 3.2).

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      size: of the square's side; the paper's is 16 for CIFAR-10.
      value: what it is filled with, 0 … 255.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    shape = tf.shape(image)
    top, left = rng.below(shape[0]) - size // 2, rng.below(shape[1]) - size // 2
    return _fill_box(image, (top, left, size, size), tf.cast(value, image.dtype))


def random_erasing(
    image: Any,
    rng: Rng,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Any:
    """Fills a random box with random pixels (Random Erasing, arXiv:1708.04896, algorithm 1).

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      probability: of doing anything.
      area: of the box, as a fraction of the image's; uniform.
      ratio: of the box's height over its width; uniform, as in the paper.

    Returns:
      uint8 [H, W, C]. Ten boxes are tried; if none lies inside, the image stays as it is.
    """
    tf = tf_cpu()
    h, w = (tf.cast(side, tf.float64) for side in tf.unstack(tf.shape(image)[:2]))
    areas = h * w * rng.uniform(*area, shape=(10,))
    ratios = rng.uniform(*ratio, shape=(10,))
    heights, widths = tf.floor(tf.sqrt(areas * ratios)), tf.floor(tf.sqrt(areas / ratios))
    fits = (heights < h) & (widths < w)
    tops = tf.floor(rng.uniform(shape=(10,)) * (h - heights + 1))
    lefts = tf.floor(rng.uniform(shape=(10,)) * (w - widths + 1))
    first = tf.argmax(tf.cast(fits, tf.int32))
    boxes = tf.cast(tf.stack([tops, lefts, heights, widths], 1), tf.int32)
    chosen = rng.chance(probability) & tf.reduce_any(fits)
    seed = rng.field_seed()

    def erase() -> Any:
        noise = tf.random.stateless_uniform(tf.shape(image), seed, 0, 256, tf.int32, alg='philox')
        return _fill_box(image, tf.unstack(boxes[first]), tf.cast(noise, image.dtype))

    return tf.cond(chosen, erase, lambda: image)


def _fill_box(image: Any, box: Any, value: Any) -> Any:
    tf = tf_cpu()
    top, left, height, width = box
    rows, columns = tf.range(tf.shape(image)[0]), tf.range(tf.shape(image)[1])
    inside_y = (rows >= top) & (rows < top + height)
    inside_x = (columns >= left) & (columns < left + width)
    inside = (inside_y[:, None] & inside_x[None, :])[..., None]
    return tf.ensure_shape(tf.where(inside, value, image), image.shape)
