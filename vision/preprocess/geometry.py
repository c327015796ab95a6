"""Sizes and crops: ops that say which part of the picture the model sees, and how large."""

from typing import Any

from vision.core.errors import unknown
from vision.core.tf_cpu import tf_cpu
from vision.preprocess.draws import Rng


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
    """Resizes to exactly this size, whatever the aspect.

    Args:
      image: uint8 [H, W, C].
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


def check_choice(op: str, argument: str, value: str, known: tuple[str, ...]) -> None:
    """Raises UserError unless the argument's value is one of those known."""
    if value not in known:
        raise unknown(f'{argument} of {op}', value, known)


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
      image: uint8 [H, W, C].
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
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      low: the least length, in pixels.
      high: the greatest.

    Returns:
      uint8 [H', W', C], low ≤ min(H', W') ≤ high, every length equally likely.
    """
    return resize_small(image, jittered(rng, low, high))


def jittered(rng: Rng, low: int, high: int) -> Any:
    """The shorter side that `scale_jitter` chooses: an int32 scalar."""
    return low + rng.below(high - low + 1)


def central_crop(image: Any, height: int, width: int | None = None) -> Any:
    """Cuts out the middle.

    Args:
      image: uint8 [H, W, C], at least that large; an odd margin's larger half is at the end.
      height: in pixels.
      width: the same as height, unless given.

    Returns:
      uint8 [height, width, C].
    """
    tf = tf_cpu()
    width = width or height
    _check_fits(image, (height, width), 'central_crop')
    top, left = tf.unstack(central_corner(tf.shape(image)[:2], (height, width)))
    crop = image[top : top + height, left : left + width]
    return tf.ensure_shape(crop, [height, width, image.shape[-1]])


def central_corner(whole: Any, size: tuple[int, int]) -> Any:
    """Top and left of the window of that size in the middle of `whole`, a height and a width: int32 [2]."""
    return (whole - size) // 2


def random_crop(
    image: Any, rng: Rng, height: int, width: int | None = None, padding: int = 0
) -> Any:
    """Cuts out a part of the image at random, after padding it with zeros.

    `random_crop(32, padding=4)` is CIFAR's (ResNet, arXiv:1512.03385, 4.2).

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      height: in pixels.
      width: the same as height, unless given.
      padding: rows and columns of zeros on each side.

    Returns:
      uint8 [height, width, C]; every position is equally likely.
    """
    tf = tf_cpu()
    width = width or height
    image = pad(image, padding) if padding else image
    _check_fits(image, (height, width), 'random_crop')
    top, left = tf.unstack(random_corner(tf.shape(image)[:2], (height, width), rng))
    crop = image[top : top + height, left : left + width]
    return tf.ensure_shape(crop, [height, width, image.shape[-1]])


def random_corner(whole: Any, size: tuple[int, int], rng: Rng) -> Any:
    """Top and left of a window of that size in `whole`, every place equally likely: int32 [2]."""
    return tf_cpu().stack([rng.below(whole[0] - size[0] + 1), rng.below(whole[1] - size[1] + 1)])


def _check_fits(image: Any, size: tuple[int, int], op: str) -> None:
    for side, known in zip(size, image.shape[:2], strict=True):
        if known is not None and known < side:
            raise ValueError(_too_small(size, op))
    assert_fits(tf_cpu().shape(image)[:2], size, op)


def assert_fits(whole: Any, size: tuple[int, int], op: str) -> None:
    """Fails, where the graph runs, unless a window of that size fits in `whole`: int32 [2]."""
    tf = tf_cpu()
    tf.debugging.assert_greater_equal(whole, size, message=_too_small(size, op))


def _too_small(size: tuple[int, int], op: str) -> str:
    return f'{op}{size}: the image is smaller; resize it first'


def random_box(
    height: Any,
    width: Any,
    rng: Rng,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Any:
    """Chooses Inception's random crop (GoogLeNet, arXiv:1409.4842, section 6).

    Ten attempts: area uniform, aspect (width over height) uniform in its logarithm, position
    uniform. If none lies inside the image, the largest central box of an allowed aspect.

    Returns:
      top, left, height, width: int32 [4].
    """
    tf = tf_cpu()
    h, w = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    areas = h * w * rng.uniform(*area, shape=(10,))
    low, high = tf.unstack(tf.math.log(tf.constant(ratio, tf.float64)))
    aspects = tf.exp(low + (high - low) * rng.uniform(shape=(10,)))
    boxes_h, boxes_w = tf.round(tf.sqrt(areas / aspects)), tf.round(tf.sqrt(areas * aspects))
    fits = (boxes_h >= 1) & (boxes_w >= 1) & (boxes_h <= h) & (boxes_w <= w)
    tops = tf.floor(rng.uniform(shape=(10,)) * (h - boxes_h + 1))
    lefts = tf.floor(rng.uniform(shape=(10,)) * (w - boxes_w + 1))
    boxes = tf.stack([tops, lefts, boxes_h, boxes_w], axis=1)
    first = tf.argmax(tf.cast(fits, tf.int32))
    fallback = _central_box(h, w, ratio)
    box = tf.where(tf.reduce_any(fits), boxes[first], fallback)
    return tf.cast(box, tf.int32)


def _central_box(h: Any, w: Any, ratio: tuple[float, float]) -> Any:
    tf = tf_cpu()
    box_h = tf.maximum(tf.minimum(h, tf.round(w / ratio[0])), 1)
    box_w = tf.maximum(tf.minimum(w, tf.round(h * ratio[1])), 1)
    return tf.stack([(h - box_h) // 2, (w - box_w) // 2, box_h, box_w])


def random_resized_crop(
    image: Any,
    rng: Rng,
    height: int,
    width: int | None = None,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Any:
    """Inception's crop (`random_box`), resized bilinearly (GoogLeNet, arXiv:1409.4842, section 6).

    After `decode`, the two are done in one: only the box is decoded, at a half, a quarter or an
    eighth of its resolution where that still has as many pixels as are asked for, and with the fast DCT.

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.
      height: of the output, in pixels.
      width: the same as height, unless given.
      area: of the box, as a fraction of the image's, least and greatest.
      ratio: the box's width over its height, least and greatest.

    Returns:
      uint8 [height, width, C].
    """
    tf = tf_cpu()
    shape = tf.shape(image)
    top, left, rows, columns = tf.unstack(random_box(shape[0], shape[1], rng, area, ratio))
    crop = image[top : top + rows, left : left + columns]
    crop.set_shape([None, None, image.shape[-1]])
    return resize_bilinear_fast(crop, (height, width or height))


def pad(image: Any, pixels: int, value: float = 0.0) -> Any:
    """Adds a border of that many pixels and that value on each side.

    Args:
      image: uint8 [H, W, C].
      pixels: the border's width.
      value: 0 … 255.

    Returns:
      uint8 [H + 2·pixels, W + 2·pixels, C].
    """
    tf = tf_cpu()
    border = [[pixels, pixels], [pixels, pixels], [0, 0]]
    return tf.pad(image, border, constant_values=tf.cast(value, image.dtype))


def flip_lr(image: Any, rng: Rng) -> Any:
    """Mirrors left and right with probability one half (AlexNet, NIPS 2012, section 4.1).

    Args:
      image: uint8 [H, W, C].
      rng: the op's random numbers.

    Returns:
      uint8 [H, W, C].
    """
    return _flip(image, rng, axis=1)


def flip_ud(image: Any, rng: Rng) -> Any:
    """Mirrors top and bottom with probability one half: uint8 [H, W, C] → the same."""
    return _flip(image, rng, axis=0)


def _flip(image: Any, rng: Rng, axis: int) -> Any:
    tf = tf_cpu()
    return tf.cond(rng.chance(0.5), lambda: tf.reverse(image, [axis]), lambda: image)
