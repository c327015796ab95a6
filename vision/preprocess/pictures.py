"""Conversion of images for display: RGB, thumbnails, `data:` URIs, and figures of several images."""

import base64
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vision.core.fonts import legible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL = 160  # pixels of the longer side


class Picture(NamedTuple):
    """A picture with its caption, for a page or a figure.

    Attributes:
      image: uint8 [H, W, C], or None if the picture is missing.
      caption: the text below the picture on a page, or above it in a figure.
      mark: a highlighted note above the caption, such as 'another class'; '' for none.
    """

    image: np.ndarray | None
    caption: str
    mark: str = ''


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


def draw_grid(rows: Sequence[Sequence[Picture]]) -> 'Figure':
    """Draws rows of pictures of equal width with their captions above."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(rows)), dpi=90, layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, (image, caption, mark) in zip(axes_row, row, strict=False):
            # The mark may take several lines of 24 characters, the caption takes one.
            title = '\n'.join([*textwrap.wrap(plain(mark, 60), 24), plain(caption)])
            colour = '#c2410c' if mark else 'black'
            axes.set_title(title, fontsize=8, parse_math=False, color=colour)
            if image is not None:
                axes.imshow(np.asarray(thumbnail(image)))
    return figure


def plain(text: str, length: int = 24) -> str:
    """Shortens a text to `length` and escapes the characters that the figures' font lacks."""
    return legible(text, length=length)
