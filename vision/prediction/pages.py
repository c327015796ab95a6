"""Self-contained HTML pages: pictures are embedded, no other files are loaded, no script runs."""

import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vision.core.errors import UserError
from vision.preprocess.pictures import THUMBNAIL, Picture, data_uri

_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 92rem; padding: 0 1rem; }
section { border-top: 1px solid #8884; padding: .75rem 0; }
h2 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: .75rem; padding-left: calc(160px + 2.25rem); }
figure { margin: 0; width: 160px; }
.row figure:first-child { margin: 0 1.5rem 0 calc(-160px - 2.25rem); }
@media (max-width: 32rem) {
  .row { padding-left: 0; }
  .row figure:first-child { margin: 0; }
}
img { display: block; max-width: 160px; border-radius: 4px; }
figcaption { font-size: 12px; margin-top: 3px; overflow-wrap: anywhere; }
.mark { color: #c2410c; display: block; font-weight: 600; }
.marked img { outline: 3px solid #ea580c; }
@media (prefers-color-scheme: dark) { .mark { color: #fb923c; } }
"""
# Large pictures stand below each other and shrink with the window.
_WIDE = """
.row, .row figure:first-child { padding: 0; margin: 0; }
figure, img { width: auto; max-width: 100%; height: auto; }
"""
# The style of a missing picture. It is inline, because pages with different style sheets use it.
_NO_PICTURE = 'background: #8882; border-radius: 4px; line-height: 6rem; text-align: center'


Row = tuple[str, list[Picture]]


def write_page(
    path: Path, title: str, note: str, rows: Iterable[Row], side: int = THUMBNAIL
) -> None:
    """Writes a page of rows of pictures; each row is written as soon as it is available.

    Args:
      path: the HTML file.
      title: the page's title.
      note: a sentence below the title.
      rows: (heading, pictures) of each row.
      side: pixels of a picture's longer side.

    Raises:
      UserError: the file system does not accept the file.
    """
    style = _STYLE if side == THUMBNAIL else _STYLE + _WIDE
    # Bytes of file names that are not UTF-8 become backslash escapes. All text is HTML-escaped.
    try:
        opened = open(path, 'w', encoding='utf-8', errors='backslashreplace')  # noqa: SIM115
    except FileNotFoundError as e:  # the file system, such as /proc, takes no files
        raise UserError(f'{path} cannot be written: {e.strerror}') from None
    with opened as file:
        file.write(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f'<title>{html.escape(title)}</title><style>{style}</style></head><body>'
            f'<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>\n'
        )
        for heading, row in rows:
            file.write(f'<section><h2>{html.escape(heading)}</h2><div class="row">')
            for picture in row:
                file.write(figure(*picture, side=side))
            file.write('</div></section>\n')
        file.write('</body></html>\n')


def figure(image: np.ndarray | None, caption: str, mark: str = '', side: int = THUMBNAIL) -> str:
    """Returns the HTML of a `Picture` whose longer side is `side` pixels."""
    text, picture = html.escape(caption), f'<div style="{_NO_PICTURE}">no picture</div>'
    if image is not None:
        scale = side / max(image.shape[:2])
        height, width = (max(1, round(scale * n)) for n in image.shape[:2])
        # Keep the pixels of enlarged images sharp, as matplotlib does in figures.
        hard = ' style="image-rendering: pixelated"' if scale >= 2 else ''
        picture = (
            f'<img src="{data_uri(image, side)}" alt="{html.escape(caption, True)}" '
            f'width="{width}" height="{height}"{hard}>'
        )
    if mark:
        text = f'<b class="mark">{html.escape(mark)}</b>{text}'
    kind = ' class="marked"' if mark else ''
    return f'<figure{kind}>{picture}<figcaption>{text}</figcaption></figure>'
