"""Images as people look at them: small, in colour, and in a form that a page can hold."""

import base64
import io
from typing import Any

import numpy as np

THUMBNAIL = 160  # pixels of the longer side


def to_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] → [H, W, 3]: grey is repeated, channels beyond the third are left out."""
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> Any:
    """A PIL image of uint8 [H, W, C], its longer side at most `side` pixels; never enlarged."""
    from PIL import Image

    picture = Image.fromarray(to_rgb(image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def data_uri(image: np.ndarray, side: int = THUMBNAIL) -> str:
    """The thumbnail as a `data:` URI that a page can hold: PNG if tiny, JPEG if a photo."""
    picture, buffer = thumbnail(image, side), io.BytesIO()
    kind = 'png' if picture.width * picture.height <= 64 * 64 else 'jpeg'
    picture.save(buffer, kind, quality=80, optimize=True)
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'
