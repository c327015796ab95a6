"""Ops for images that are in memory, all of one size: written in JAX, run on the device.

Each takes one image, float32 [H, W, C] in 0 … 255, and a key (unused by the fixed ops), and
returns one; `vmap` makes the batch of it. The image's values may leave 0 … 255 between ops
(normalisation follows, not a display). Sizes are fixed when the op string is compiled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def resize(image: jax.Array, key: jax.Array, height: int, width: int | None = None) -> jax.Array:
    """Resizes to [height, width, C], bilinear, with antialiasing where it shrinks.

    Pixel centres are at half integers, as in Pillow.
    """
    shape = (height, width or height, image.shape[2])
    if image.shape == shape:
        return image
    return jax.image.resize(image, shape, 'linear', antialias=True)


def pad(image: jax.Array, key: jax.Array, pixels: int, value: float = 0.0) -> jax.Array:
    """Adds a border of `pixels` on each side: [H + 2·pixels, W + 2·pixels, C]."""
    return jnp.pad(image, [(pixels, pixels), (pixels, pixels), (0, 0)], constant_values=value)


def central_crop(
    image: jax.Array, key: jax.Array, height: int, width: int | None = None
) -> jax.Array:
    """Cuts [height, width, C] out of the middle."""
    width = width or height
    _check_fits(image, height, width)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def random_crop(
    image: jax.Array, key: jax.Array, height: int, width: int | None = None, padding: int = 0
) -> jax.Array:
    """Cuts [height, width, C] out at a random place, after zero padding (He et al. 2015, 4.2)."""
    width = width or height
    image = pad(image, key, padding)
    _check_fits(image, height, width)
    room = jnp.array([image.shape[0] - height, image.shape[1] - width])
    top, left = jax.random.randint(key, (2,), 0, room + 1)
    return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[2]))


def translate(image: jax.Array, key: jax.Array, pixels: int) -> jax.Array:
    """Shifts by whole pixels, up to `pixels` each way; zeros come in at the border."""
    return random_crop(image, key, image.shape[0], image.shape[1], padding=pixels)


def flip_lr(image: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors left and right with probability one half."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def affine(
    image: jax.Array,
    key: jax.Array,
    degrees: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> jax.Array:
    """A random affine map about the centre, bilinear, zeros outside.

    The planar distortions of LeCun et al. 1998, III.B: translation, scaling, squeezing, shearing.

    Args:
      image: [H, W, C].
      key: of this image and op.
      degrees: rotation is uniform in ± degrees.
      scale: each axis is scaled by its own factor, uniform in 1 ± scale.
      shear: horizontal shear is uniform in ± shear (tangent of the angle).
      shift: translation of each axis is uniform in ± shift pixels.
    """
    turn, scale_y, scale_x, lean, dy, dx = jax.random.uniform(key, (6,), minval=-1.0, maxval=1.0)
    angle = jnp.deg2rad(degrees) * turn
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.array([[cos, -sin], [sin, cos]])
    squeeze = jnp.array([[1 + scale * scale_y, 0.0], [shear * lean, 1 + scale * scale_x]])
    # The inverse map, as sampling needs it: from a pixel of the result to one of the image.
    inverse = jnp.linalg.inv(rotation @ squeeze)
    size = jnp.array(image.shape[:2])
    centre = (size - 1) / 2
    offset = (
        jnp.stack(_grid(image)) - centre[:, None, None] - shift * jnp.array([dy, dx])[:, None, None]
    )
    return _sample(image, jnp.einsum('ij,jhw->ihw', inverse, offset) + centre[:, None, None])


def elastic(image: jax.Array, key: jax.Array, alpha: float, sigma: float) -> jax.Array:
    """Elastic distortion (Simard, Steinkraus and Platt 2003, 2).

    Args:
      image: [H, W, C].
      key: of this image and op.
      alpha: the displacement field is uniform noise in ± 1, smoothed, times `alpha` pixels.
      sigma: standard deviation of the Gaussian that smooths it, in pixels.
    """
    noise = jax.random.uniform(key, (2, *image.shape[:2]), minval=-1.0, maxval=1.0)
    smooth_y, smooth_x = (_gaussian(n, sigma) for n in image.shape[:2])
    field = jnp.einsum('ij,cjk,kl->cil', smooth_y, noise, smooth_x.T)
    return _sample(image, jnp.stack(_grid(image)) + alpha * field)


def cutout(image: jax.Array, key: jax.Array, size: int, value: float = 0.0) -> jax.Array:
    """Blanks a square of `size` pixels about a random centre, cut at the border (DeVries 2017)."""
    centre = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
    y, x = _grid(image)
    inside = [(c - size // 2 <= g) & (g < c - size // 2 + size) for c, g in zip(centre, (y, x))]
    return jnp.where((inside[0] & inside[1])[..., None], value, image)


def rgb(image: jax.Array, key: jax.Array) -> jax.Array:
    """Grey to three equal channels; [H, W, 3] stays as it is."""
    return jnp.broadcast_to(image, (*image.shape[:2], 3))


DEVICE_OPS: dict[str, Callable[..., jax.Array]] = {
    op.__name__: op
    for op in (
        resize, pad, central_crop, random_crop, translate, flip_lr, affine, elastic, cutout, rgb,
    )
}  # fmt: skip


def _grid(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The row and the column of each pixel, float32 [H, W] each."""
    rows, columns = (jnp.arange(n, dtype=jnp.float32) for n in image.shape[:2])
    y, x = jnp.meshgrid(rows, columns, indexing='ij')
    return y, x


def _sample(image: jax.Array, coordinates: jax.Array) -> jax.Array:
    """The image at float coordinates [2, H, W], bilinear, zeros outside."""
    channels = [
        jax.scipy.ndimage.map_coordinates(image[..., c], list(coordinates), order=1)
        for c in range(image.shape[2])
    ]
    return jnp.stack(channels, axis=-1)


def _gaussian(n: int, sigma: float) -> jax.Array:
    """A Gaussian blur as a matrix [n, n]; each row sums to 1."""
    distance = jnp.arange(n)[:, None] - jnp.arange(n)[None, :]
    weights = jnp.exp(-0.5 * (distance / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _check_fits(image: jax.Array, height: int, width: int) -> None:
    from vision.core.errors import UserError

    if height > image.shape[0] or width > image.shape[1]:
        raise UserError(
            f'cannot cut {height} x {width} out of an image of {image.shape[0]} x {image.shape[1]}'
        )
