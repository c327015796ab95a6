"""Pictures of heat maps and neighbours: for a page, a file, a figure."""

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
      heat: float32 [H, W] in 0 … 1; where it is 0 the image is as it was, but grey.

    Returns:
      uint8 [H, W, 3].
    """
    from matplotlib import colormaps

    grey = to_rgb(image).astype(np.float32).mean(axis=-1, keepdims=True)
    colour = colormaps['turbo'](heat)[..., :3].astype(np.float32) * 255
    strength = 0.65 * heat[..., None]
    return np.rint(grey * (1 - strength) + colour * strength).astype(np.uint8)


def grey(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, C] → float32 [side, side], each the mean of its part, whatever the aspect."""
    from PIL import Image

    small = Image.fromarray(to_rgb(image)).convert('L').resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def draw_grid(rows: list[list[Picture]], path: Path) -> None:
    """Writes a figure of pictures with their captions above, row by row, all of one width; to a PNG."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, (image, caption, mark) in zip(axes_row, row, strict=False):
            title = '\n'.join([*textwrap.wrap(plain(mark, 60), 24), plain(caption)])
            colour = '#c2410c' if mark else 'black'
            axes.set_title(title, fontsize=8, parse_math=False, color=colour)
            if image is not None:
                axes.imshow(np.asarray(thumbnail(image)))
    figure.savefig(path, dpi=90, format='png')


def plain(text: str, length: int = 24) -> str:
    """A text that a figure can show: of that length at most, with what the font lacks escaped."""
    return legible(text, length=length)
