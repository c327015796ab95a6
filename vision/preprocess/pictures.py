"""Conversion of images for display: RGB, thumbnails and `data:` URIs."""

import base64
import io
from typing import Any

import numpy as np

THUMBNAIL = 160  # pixels of the longer side


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts uint8 [H, W, C] to [H, W, 3]; repeats grey, and drops channels after the third."""
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> Any:
    """Returns uint8 [H, W, C] as a PIL image whose longer side has at most `side` pixels.

    Smaller images are not enlarged.
    """
    from PIL import Image

    picture = Image.fromarray(to_rgb(image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def data_uri(image: np.ndarray, side: int = THUMBNAIL) -> str:
    """Returns the thumbnail as a `data:` URI: PNG up to 64 × 64 pixels, otherwise JPEG."""
    picture, buffer = thumbnail(image, side), io.BytesIO()
    # Small images stay sharp as PNG, large ones stay small as JPEG.
    kind = 'png' if picture.width * picture.height <= 64 * 64 else 'jpeg'
    picture.save(buffer, kind, quality=80, optimize=True)
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'
