"""Ops that resample an image: at another size, or at other places, as rotations, zooms, shears and elastic distortions do."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core.startup import tf_cpu
from vision.preprocess.ops.registry import DeviceRng, Rng
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


def transform(image: Any, inverse: Any, fill: float = 0.0, nearest: bool = False) -> Any:
    """Resamples the image about its centre.

    Args:
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
      low: above 0; below 1 the picture becomes smaller and its border is filled.
      high: at least low.
      fill: what comes in from outside, 0 … 255.

    Returns:
      uint8 [H, W, C].
    """
    inverse = 1 / rng.uniform(low, high)
    return transform(image, _matrix([[inverse, 0.0, 0.0], [0.0, inverse, 0.0]]), fill)


def shear(image: Any, rng: Rng, degrees: float, fill: float = 0.0) -> Any:
    """Shears horizontally by an angle uniform in ± degrees, bilinear.

    Args:
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


def affine_on_device(
    image: jax.Array,
    rng: DeviceRng,
    degrees: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> jax.Array:
    """`affine`."""
    turn, scale_x, scale_y, lean, dx, dy = rng.uniform(-1.0, 1.0, shape=(6,))
    angle = jnp.deg2rad(degrees) * turn
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Matrices of (y, x).
    turned = jnp.array([[cos, -sin], [sin, cos]])
    squeeze = jnp.array([[1 + scale * scale_y, 0.0], [shear * lean, 1 + scale * scale_x]])
    # The inverse map, as sampling needs it: from a pixel of the result to one of the image.
    inverse = jnp.linalg.inv(turned @ squeeze)
    centre = (jnp.array(image.shape[:2]) - 1) / 2
    offset = _grid(image) - (centre + shift * jnp.array([dy, dx]))[:, None, None]
    return _sample(image, jnp.einsum('ij,jhw->ihw', inverse, offset) + centre[:, None, None])


def elastic(image: Any, rng: Rng, alpha: float, sigma: float) -> Any:
    """Elastic distortion (Simard, Steinkraus and Platt 2003, section 2), bilinear, zeros outside.

    Args:
      alpha: the displacements are uniform noise in ± 1, smoothed, times alpha pixels.
      sigma: standard deviation in pixels of the Gaussian that smooths them, which is cut at 4 sigma;
        outside the image there is no noise.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    noise = rng.field(tf.concat([tf.shape(image)[:2], [2]], 0), -1, 1)
    return displace(image, alpha * gaussian_blur(noise, sigma))


def elastic_on_device(image: jax.Array, rng: DeviceRng, alpha: float, sigma: float) -> jax.Array:
    """`elastic`."""
    noise = rng.field((*image.shape[:2], 2), -1.0, 1.0)
    smooth_y, smooth_x = (_blur_matrix(n, sigma) for n in image.shape[:2])
    field = jnp.einsum('ij,jkc,lk->cil', smooth_y, noise, smooth_x)
    return _sample(image, _grid(image) + alpha * field)


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
    padded = tf.pad(tf.cast(image, tf.float32), [[1, 1], [1, 1], [0, 0]])
    limit = tf.stack([height + 1, width + 1])

    def corner(dy: int, dx: int) -> Any:
        index = tf.clip_by_value(low + [dy, dx] + 1, 0, limit)
        wy = weight[..., :1] if dy else 1 - weight[..., :1]
        wx = weight[..., 1:] if dx else 1 - weight[..., 1:]
        return tf.gather_nd(padded, index) * wy * wx

    total = corner(0, 0) + corner(0, 1) + corner(1, 0) + corner(1, 1)
    return tf.ensure_shape(to_uint8(total), image.shape)


def _blur_matrix(n: int, sigma: float) -> np.ndarray:
    """`gaussian_blur` of n values in a row, as a matrix: float32 [n, n]."""
    radius = math.ceil(4 * sigma)
    total = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).sum()
    distance = np.abs(np.arange(n)[:, None] - np.arange(n)[None, :])
    weights = np.exp(-0.5 * (distance / sigma) ** 2) / total
    return np.where(distance <= radius, weights, 0).astype(np.float32)


def _grid(image: jax.Array) -> jax.Array:
    """The row and the column of each pixel: float32 [2, H, W]."""
    rows, columns = (jnp.arange(n, dtype=jnp.float32) for n in image.shape[:2])
    return jnp.stack(jnp.meshgrid(rows, columns, indexing='ij'))


def _sample(image: jax.Array, coordinates: jax.Array) -> jax.Array:
    """The image at float coordinates [2, H, W], bilinear, zeros outside."""
    channels = [
        jax.scipy.ndimage.map_coordinates(image[..., c], list(coordinates), order=1)
        for c in range(image.shape[2])
    ]
    return jnp.stack(channels, axis=-1)
