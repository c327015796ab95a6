"""Pictures of images, heat maps and neighbours: for a page, a file, a figure."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

from vision.data.source import ArraySource, FileSource, Source
from vision.preprocess.decode import BadImage, read

THUMBNAIL = 160  # pixels of the longer side


def to_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] → [H, W, 3]: grey is repeated, channels beyond the third are left out."""
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]


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


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> Any:
    """A PIL image of uint8 [H, W, C], its longer side `side` pixels; small ones keep hard pixels."""
    from PIL import Image

    picture = Image.fromarray(to_rgb(image))
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return picture.resize(size, resample)


def grey(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, C] → float32 [side, side], each the mean of its part, whatever the aspect."""
    from PIL import Image

    small = Image.fromarray(to_rgb(image)).convert('L').resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def data_uri(image: np.ndarray, side: int = THUMBNAIL) -> str:
    """uint8 [H, W, C] as a `data:` URI that a page can hold: PNG if small, JPEG if a photo."""
    small = max(image.shape[:2]) <= side // 2
    buffer = io.BytesIO()
    thumbnail(image, side).save(buffer, 'PNG' if small else 'JPEG', quality=85)
    kind = 'png' if small else 'jpeg'
    return f'data:image/{kind};base64,' + base64.b64encode(buffer.getvalue()).decode()


def example(source: Source, index: int) -> np.ndarray | None:
    """One image of a source as it is, uint8 [H, W, C]; None if it cannot be read (any more)."""
    if isinstance(source, ArraySource):
        return source.images[index] if index < source.num_examples else None
    if not isinstance(source, FileSource):  # TFDS: can only be read in sequence
        return None
    from vision.preprocess.pipeline import read_file

    try:
        return read(read_file(source.paths[index]))
    except BadImage:
        return None


def draw_grid(rows: list[list[tuple[np.ndarray | None, str]]], path: Path) -> None:
    """Writes a figure of images with titles, row by row, all of one width.

    Args:
      rows: of (uint8 [H, W, C] or None, title).
      path: of the PNG.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(1.5 * columns, 1.75 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, (image, title) in zip(axes_row, row, strict=False):
            axes.set_title(plain(title), fontsize=8, parse_math=False)
            if image is not None:
                axes.imshow(np.asarray(thumbnail(image)))
    figure.savefig(path, dpi=90, format='png')


def plain(text: str, length: int = 24) -> str:
    """A text that a figure can show: of that length at most, without what no font has."""
    text = text.encode('utf-8', 'replace').decode()
    return text if len(text) <= length else '…' + text[1 - length :]
