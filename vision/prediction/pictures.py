"""Drawing of heat maps and of grids of pictures."""

import textwrap
from pathlib import Path

import numpy as np

from vision.core.fonts import legible
from vision.prediction.pages import Picture
from vision.preprocess.pictures import thumbnail, to_rgb


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a heat map over an image.

    Args:
      image: uint8 [H, W, C].
      heat: float32 [H, W] in 0 … 1. Where it is 0, the image is shown in grey.

    Returns:
      uint8 [H, W, 3].
    """
    from matplotlib import colormaps

    # Colour on grey, so that the image's own colours are not taken for heat.
    grey = to_rgb(image).astype(np.float32).mean(axis=-1, keepdims=True)
    colour = colormaps['turbo'](heat)[..., :3].astype(np.float32) * 255
    strength = 0.65 * heat[..., None]
    return np.rint(grey * (1 - strength) + colour * strength).astype(np.uint8)


def grey(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks an image uint8 [H, W, C] to float32 grey [side, side] by averaging.

    The aspect ratio is not kept.
    """
    from PIL import Image

    small = Image.fromarray(to_rgb(image)).convert('L').resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def draw_grid(rows: list[list[Picture]], path: Path) -> None:
    """Writes a PNG with rows of pictures of equal width and their captions above."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(rows)), layout='constrained')
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
    figure.savefig(path, dpi=90, format='png')


def plain(text: str, length: int = 24) -> str:
    """Shortens a text to `length` and escapes the characters that the figures' font lacks."""
    return legible(text, length=length)
