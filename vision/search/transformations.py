"""Transformations of photos, of which copies are made to judge how well copies are found.

Each takes pixels uint8 [H, W, 3] and returns pixels uint8 [h, w, 3]. `copy_of` draws all random
numbers of a copy from the seed, the transformation and the photo, so that a copy does not depend on
the order in which copies are made. Lengths, such as the σ of a blur, are in pixels: photos should
have about the same size.
"""

import functools
import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vision.core.errors import unknown

Transformation = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_TEXT = 'The quick brown fox jumps over the lazy dog'
_STICKERS = 3  # stickers that share the covered area


def crop(image: np.ndarray, rng: np.random.Generator, area: float) -> np.ndarray:
    """Cuts out a part of the same aspect ratio at a random place.

    Args:
      image: uint8 [H, W, 3].
      rng: draws the place.
      area: the part's share of the area.
    """
    height, width = (max(1, round(n * area**0.5)) for n in image.shape[:2])
    top = rng.integers(image.shape[0] - height + 1)
    left = rng.integers(image.shape[1] - width + 1)
    return image[top : top + height, left : left + width]


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors the left and the right."""
    return image[:, ::-1]


def rotate(image: np.ndarray, rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Rotates counterclockwise; the frame grows to hold everything, with black corners."""
    turned = Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    return np.asarray(turned)


def jpeg(image: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    """Compresses as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'jpeg', quality=quality)
    return np.asarray(Image.open(buffer))


def resize(
    image: np.ndarray, rng: np.random.Generator, width: float = 1, height: float = 1
) -> np.ndarray:
    """Multiplies the sides by factors."""
    size = (max(1, round(image.shape[1] * width)), max(1, round(image.shape[0] * height)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def blur(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Convolves with a Gaussian of a standard deviation in pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def noise(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Adds Gaussian noise, independent in each channel, of a standard deviation of 255."""
    return _to_uint8(image + rng.normal(0, sigma, image.shape))


def brightness(image: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    """Multiplies all values."""
    return _to_uint8(image * factor)


def contrast(image: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    """Multiplies the differences from the mean value."""
    mean = image.mean()
    return _to_uint8(mean + (image - mean) * factor)


def grey(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replaces colours by their luma (ITU-R 601)."""
    return np.asarray(Image.fromarray(image).convert('L').convert('RGB'))


def hue(image: np.ndarray, rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Rotates the hue of HSV."""
    hsv = np.array(Image.fromarray(image).convert('HSV'))
    hsv[..., 0] += np.uint8(round(degrees / 360 * 256) % 256)
    return np.asarray(Image.fromarray(hsv, 'HSV').convert('RGB'))


def border(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Puts a border of a random colour around the image, as wide as a share of each side."""
    height, width = (round(n * share) for n in image.shape[:2])
    framed = np.empty((image.shape[0] + 2 * height, image.shape[1] + 2 * width, 3), np.uint8)
    framed[:] = rng.integers(0, 256, 3)
    framed[height : height + image.shape[0], width : width + image.shape[1]] = image
    return framed


def text(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Writes a line of text on a band of this share of the height, at a random height."""
    height, width = image.shape[:2]
    band = max(1, round(height * share))
    top = int(rng.integers(height - band + 1))
    dark = int(rng.integers(2)) * 255
    font = ImageFont.load_default(max(4, 0.75 * band))
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, top, width, top + band - 1), fill=(dark,) * 3)
    draw.text((width // 50, top + band // 2), _TEXT, (255 - dark,) * 3, font, anchor='lm')
    return np.asarray(picture)


def stickers(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Covers a share of the area by three ellipses, each of two random colours.

    They do not overlap, and have the aspect ratio of the image.
    """
    radius = (share / _STICKERS / np.pi) ** 0.5  # where both sides of the image are 1
    while True:
        centres = rng.uniform(radius, 1 - radius, (_STICKERS, 2))
        apart = np.linalg.norm(centres[:, None] - centres, axis=-1) + 2 * np.eye(_STICKERS)
        if apart.min() >= 2 * radius:
            break
    covered = image.copy()
    rows, columns = ((np.arange(n) + 0.5) / n for n in image.shape[:2])
    for y, x in centres:
        distance = np.hypot(rows[:, None] - y, columns - x)
        for part in (1, 0.6):
            covered[distance < part * radius] = rng.integers(0, 256, 3)
    return covered


def screenshot(image: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Lays the image at half its width and height on another photo, at a random place.

    The other photo is stretched to the size of the image.
    """
    height, width = image.shape[:2]
    canvas = np.array(Image.fromarray(other).resize((width, height), Image.Resampling.BICUBIC))
    small = resize(image, rng, 0.5, 0.5)
    top = rng.integers(height - small.shape[0] + 1)
    left = rng.integers(width - small.shape[1] + 1)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


# The single transformations. 'screenshot' needs another photo, and is completed by `copy_of`.
SINGLE: dict[str, Callable[..., np.ndarray]] = {
    'crop 75 %': functools.partial(crop, area=0.75),
    'crop 50 %': functools.partial(crop, area=0.5),
    'crop 30 %': functools.partial(crop, area=0.3),
    'flip': flip,
    'rotate 90°': functools.partial(rotate, degrees=90),
    'rotate 180°': functools.partial(rotate, degrees=180),
    'rotate 5°': functools.partial(rotate, degrees=5),
    'rotate 20°': functools.partial(rotate, degrees=20),
    'jpeg 30': functools.partial(jpeg, quality=30),
    'jpeg 10': functools.partial(jpeg, quality=10),
    'scale 1/4': functools.partial(resize, width=0.25, height=0.25),
    'aspect × 1.5': functools.partial(resize, width=1.5),
    'blur 3': functools.partial(blur, sigma=3),
    'noise 25': functools.partial(noise, sigma=25),
    'brightness × 0.5': functools.partial(brightness, factor=0.5),
    'brightness × 1.6': functools.partial(brightness, factor=1.6),
    'contrast × 0.5': functools.partial(contrast, factor=0.5),
    'contrast × 1.6': functools.partial(contrast, factor=1.6),
    'grey': grey,
    'hue 60°': functools.partial(hue, degrees=60),
    'border 20 %': functools.partial(border, share=0.2),
    'text 20 %': functools.partial(text, share=0.2),
    'stickers 10 %': functools.partial(stickers, share=0.1),
    'stickers 30 %': functools.partial(stickers, share=0.3),
    'screenshot': screenshot,
}
# The number of different single transformations that are applied in turn, in a random order.
CHAINS = {'two chained': 2, 'three chained': 3}
NAMES = (*SINGLE, *CHAINS)


def copy_of(image: np.ndarray, name: str, seed: int, other: np.ndarray) -> np.ndarray:
    """Makes the copy of a photo that a seed determines.

    Args:
      image: uint8 [H, W, 3].
      name: one of `NAMES`.
      seed: 0 or larger.
      other: the photo that a screenshot shows around the copy, uint8 [h, w, 3].

    Raises:
      UserError: the name is unknown.
    """
    if name not in NAMES:
        raise unknown('transformation', name, NAMES)
    pixels = np.ascontiguousarray(image)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), zlib.crc32(pixels.tobytes())])
    chosen = [name] if name in SINGLE else rng.permutation(list(SINGLE))[: CHAINS[name]]
    for single in chosen:
        extra: dict[str, Any] = {'other': other} if single == 'screenshot' else {}
        pixels = np.ascontiguousarray(SINGLE[single](pixels, rng, **extra))
    return pixels


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
