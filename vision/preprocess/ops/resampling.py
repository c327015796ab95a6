"""Ops that resample an image: resizing, rotation, zoom, shear, affine and elastic distortion."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core.startup import tf_cpu
from vision.preprocess.ops.registry import DeviceRng, Rng
from vision.preprocess.opstring import check_choice


def to_uint8(values: Any) -> Any:
    """Rounds floats to the nearest integer (halves up), and clips them to uint8."""
    tf = tf_cpu()
    return tf.cast(tf.clip_by_value(tf.floor(values + 0.5), 0, 255), tf.uint8)


def resize(
    image: Any,
    height: int,
    width: int | None = None,
    method: str = 'bilinear',
    antialias: bool = True,
) -> Any:
    """Resizes to an exact size, without keeping the aspect ratio.

    Pixel centres are at half integers, as in Pillow.

    Args:
      height: height of the output in pixels.
      width: width in pixels; equal to the height by default.
      method: bilinear, bicubic (Keys' kernel with a = −0.5) or area.
      antialias: widens the filter when shrinking, as in Pillow; the method area always averages.

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
    """Device form of `resize`, with only the default method, bilinear with antialiasing."""
    shape = (height, width or height, image.shape[2])
    if image.shape == shape:
        return image
    return jax.image.resize(image, shape, 'linear', antialias=True)


def resize_bilinear_fast(image: Any, size: tuple[int, int]) -> Any:
    """Resizes bilinearly without antialiasing: uint8 [H, W, C] → uint8 [*size, C]."""
    tf = tf_cpu()
    # The kernel is a third faster on float32 than on uint8, with bit-identical results.
    pixels = tf.cast(image, tf.float32)[None]
    values = tf.raw_ops.ResizeBilinear(images=pixels, size=size, half_pixel_centers=True)[0]
    return tf.ensure_shape(tf.cast(values + 0.5, tf.uint8), [*size, image.shape[-1]])


def resize_small(image: Any, size: Any, method: str = 'bilinear', antialias: bool = True) -> Any:
    """Resizes the shorter side to `size`, keeping the aspect ratio (VGG, arXiv:1409.1556, 3.1).

    Args:
      size: length of the shorter side in pixels; the longer side is rounded down.
      method: as in `resize`.
      antialias: as in `resize`.

    Returns:
      uint8 [H', W', C], min(H', W') == size.
    """
    check_choice('resize_small', 'method', method, ('bilinear', 'bicubic', 'area'))
    new = short_side_to(image, size)
    return to_uint8(tf_cpu().image.resize(image, new, method=method, antialias=antialias))


def short_side_to(image: Any, size: Any) -> Any:
    """Returns the height and width of an image resized to a shorter side `size`: int32 [2]."""
    tf = tf_cpu()
    height, width = tf.unstack(tf.shape(image)[:2])
    short = tf.minimum(height, width)
    return tf.stack([height * size // short, width * size // short])


def scale_jitter(image: Any, rng: Rng, low: int = 256, high: int = 512) -> Any:
    """Resizes the shorter side to a random length, as in VGG (arXiv:1409.1556, 3.1.1) and ResNet.

    `random_crop(224)` usually follows. ResNet (arXiv:1512.03385, 3.4) uses [256, 480].

    Args:
      low: smallest length in pixels.
      high: largest length in pixels.

    Returns:
      uint8 [H', W', C], low ≤ min(H', W') ≤ high, every length equally likely.
    """
    return resize_small(image, jittered(rng, low, high))


def jittered(rng: Rng, low: int, high: int) -> Any:
    """Draws the shorter side for `scale_jitter`, an int32 scalar."""
    return low + rng.below(high - low + 1)


def transform(image: Any, inverse: Any, fill: float = 0.0, nearest: bool = False) -> Any:
    """Applies an affine map about the centre of an image.

    Args:
      inverse: the inverse map, float [2, 3], from (x, y, 1) in the result to (x, y) in the image,
        in pixels from the centre.
      fill: value of pixels from outside the image, 0 … 255.
      nearest: True takes the nearest pixel; False interpolates bilinearly.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    inverse = tf.cast(inverse, tf.float32)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    cy, cx = (size[0] - 1) / 2, (size[1] - 1) / 2
    (a, b, c), (d, e, f) = (tf.unstack(row) for row in tf.unstack(inverse))
    # TensorFlow's kernel measures positions from the corner instead of the centre.
    matrix = [a, b, c + cx - a * cx - b * cy, d, e, f + cy - d * cx - e * cy, 0.0, 0.0]
    # The values of nearest pixels need no rounding.
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
    """Stacks rows of numbers or scalar tensors to a float64 matrix."""
    tf = tf_cpu()
    return tf.stack([tf.stack([tf.cast(v, tf.float64) for v in row]) for row in rows])


def rotate(image: Any, rng: Rng, degrees: float, fill: float = 0.0) -> Any:
    """Rotates bilinearly about the centre by an angle drawn uniformly from ± degrees.

    Args:
      degrees: largest angle; positive angles are counter-clockwise.
      fill: value of pixels from outside the image, 0 … 255.

    Returns:
      uint8 [H, W, C].
    """
    angle = rng.uniform(-degrees, degrees) * (math.pi / 180)
    return transform(image, rotation(angle), fill)


def rotation(radians: Any) -> Any:
    """Returns the inverse map of a counter-clockwise rotation, float64 [2, 3]; y points down."""
    tf = tf_cpu()
    cos, sin = tf.cos(radians), tf.sin(radians)
    return _matrix([[cos, -sin, 0.0], [sin, cos, 0.0]])


def zoom(image: Any, rng: Rng, low: float, high: float, fill: float = 0.0) -> Any:
    """Magnifies bilinearly about the centre by a factor drawn uniformly from low … high.

    Args:
      low: smallest factor, above 0; factors below 1 shrink the image and fill its border.
      high: largest factor.
      fill: value of pixels from outside the image, 0 … 255.

    Returns:
      uint8 [H, W, C].
    """
    inverse = 1 / rng.uniform(low, high)
    return transform(image, _matrix([[inverse, 0.0, 0.0], [0.0, inverse, 0.0]]), fill)


def shear(image: Any, rng: Rng, degrees: float, fill: float = 0.0) -> Any:
    """Shears horizontally by an angle drawn uniformly from ± degrees; interpolates bilinearly.

    Args:
      degrees: largest angle between vertical lines and their images.
      fill: value of pixels from outside the image, 0 … 255.

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
    """Applies a random affine map about the centre, with bilinear interpolation.

    Pixels from outside the image are zero.

    These are the planar distortions of LeNet (LeCun et al. 1998, III.B): translation, scaling,
    squeezing and horizontal shearing. All parameters are drawn uniformly.

    Args:
      degrees: the rotation is in ± degrees.
      scale: each axis is scaled by its own factor, in 1 ± scale.
      shear: the tangent of the horizontal shear is in ± shear.
      shift: the translation of each axis is in ± shift pixels.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    turn, scale_x, scale_y, lean, dx, dy = tf.unstack(rng.uniform(-1, 1, shape=(6,)))
    # Compose the inverse map, which undoes the shift, then the rotation, then shear and scale.
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
    """Device form of `affine`."""
    turn, scale_x, scale_y, lean, dx, dy = rng.uniform(-1.0, 1.0, shape=(6,))
    angle = jnp.deg2rad(degrees) * turn
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # These matrices act on (y, x).
    turned = jnp.array([[cos, -sin], [sin, cos]])
    squeeze = jnp.array([[1 + scale * scale_y, 0.0], [shear * lean, 1 + scale * scale_x]])
    # Sampling needs the inverse map, from a pixel of the result to one of the image.
    inverse = jnp.linalg.inv(turned @ squeeze)
    centre = (jnp.array(image.shape[:2]) - 1) / 2
    offset = _grid(image) - (centre + shift * jnp.array([dy, dx]))[:, None, None]
    return _sample(image, jnp.einsum('ij,jhw->ihw', inverse, offset) + centre[:, None, None])


def elastic(image: Any, rng: Rng, alpha: float, sigma: float) -> Any:
    """Applies an elastic distortion (Simard, Steinkraus and Platt 2003, section 2).

    The image is interpolated bilinearly, and pixels from outside it are zero. The displacements are
    noise drawn uniformly from ± 1, smoothed by a Gaussian and multiplied by alpha. There is no
    noise outside the image.

    Args:
      alpha: scale of the displacements, in pixels.
      sigma: standard deviation of the Gaussian in pixels; it is cut off at 4 sigma.

    Returns:
      uint8 [H, W, C].
    """
    tf = tf_cpu()
    noise = rng.field(tf.concat([tf.shape(image)[:2], [2]], 0), -1, 1)
    return displace(image, alpha * gaussian_blur(noise, sigma))


def elastic_on_device(image: jax.Array, rng: DeviceRng, alpha: float, sigma: float) -> jax.Array:
    """Device form of `elastic`."""
    noise = rng.field((*image.shape[:2], 2), -1.0, 1.0)
    smooth_y, smooth_x = (_blur_matrix(n, sigma) for n in image.shape[:2])
    # Smooth rows and columns by matrices.
    field = jnp.einsum('ij,jkc,lk->cil', smooth_y, noise, smooth_x)
    return _sample(image, _grid(image) + alpha * field)


def gaussian_blur(field: Any, sigma: float) -> Any:
    """Smooths a field float32 [H, W, D] by a Gaussian cut off at 4 sigma, with zeros outside."""
    tf = tf_cpu()
    radius = math.ceil(4 * sigma)
    kernel = tf.exp(-0.5 * (tf.range(-radius, radius + 1, dtype=tf.float32) / sigma) ** 2)
    kernel = kernel / tf.reduce_sum(kernel)
    columns = tf.transpose(field, [2, 0, 1])[..., None]
    # The Gaussian is separable: smooth columns, then rows.
    columns = tf.nn.conv2d(columns, kernel[:, None, None, None], 1, 'SAME')
    columns = tf.nn.conv2d(columns, kernel[None, :, None, None], 1, 'SAME')
    return tf.transpose(columns[..., 0], [1, 2, 0])


def displace(image: Any, displacement: Any) -> Any:
    """Takes each pixel from (y, x) + displacement by bilinear interpolation, with zeros outside.

    Args:
      image: uint8 [H, W, C].
      displacement: float32 [H, W, 2], as (y, x).
    """
    tf = tf_cpu()
    height, width = tf.unstack(tf.shape(image)[:2])
    y, x = tf.meshgrid(tf.range(height), tf.range(width), indexing='ij')
    position = tf.cast(tf.stack([y, x], -1), tf.float32) + displacement
    # The four neighbouring pixels and their weights.
    low = tf.floor(position)
    weight = position - low
    low = tf.cast(low, tf.int32)
    # Add a border of zeros, which represents all pixels outside the image.
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
    """Returns the matrix that applies `gaussian_blur` along an axis of length n, float32 [n, n]."""
    radius = math.ceil(4 * sigma)
    # Normalise by the whole kernel, because there is no noise outside the image.
    total = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).sum()
    distance = np.abs(np.arange(n)[:, None] - np.arange(n)[None, :])
    weights = np.exp(-0.5 * (distance / sigma) ** 2) / total
    return np.where(distance <= radius, weights, 0).astype(np.float32)


def _grid(image: jax.Array) -> jax.Array:
    """Returns the row and the column of each pixel, float32 [2, H, W]."""
    rows, columns = (jnp.arange(n, dtype=jnp.float32) for n in image.shape[:2])
    return jnp.stack(jnp.meshgrid(rows, columns, indexing='ij'))


def _sample(image: jax.Array, coordinates: jax.Array) -> jax.Array:
    """Samples an image bilinearly at float coordinates [2, H, W], with zeros outside."""
    channels = [
        jax.scipy.ndimage.map_coordinates(image[..., c], list(coordinates), order=1)
        for c in range(image.shape[2])
    ]
    return jnp.stack(channels, axis=-1)
