"""HTML page of a preview: the faults of a data set and the images concerned."""

import base64
import html
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vision.data.source import Source
from vision.prediction.pages import figure
from vision.preprocess.inputs import examples
from vision.studies import nearness
from vision.studies.inspect import ODDITIES

_EACH = 24  # largest number of images of one kind

_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-top: 1px solid #8884; padding-top: .75rem; }
pre, li { overflow-wrap: anywhere; white-space: pre-wrap; }
.bad { color: #c33; font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: .75rem; margin: .5rem 0 1.25rem; }
figure { margin: 0; width: 160px; }
figure img { display: block; max-width: 160px; border-radius: 4px; }
figcaption { font-size: 12px; margin-top: 3px; overflow-wrap: anywhere; }
.wide { max-width: 100%; background: #fff; border-radius: 4px; }
"""


def write_page(
    folder: Path, summary: Mapping[str, Any], sources: Mapping[str, Source], words: str
) -> None:
    """Writes `index.html`, a self-contained page.

    Args:
      folder: the folder of the preview, with its two pictures.
      summary: the summary, as `vision.studies.preview` returns it.
      sources: the source of each split, for the images.
      words: the summary as text.
    """
    with open(folder / 'index.html', 'w', encoding='utf-8', errors='backslashreplace') as file:
        for part in _parts(folder, summary, sources, words):
            file.write(part + '\n')


def _parts(
    folder: Path, summary: Mapping[str, Any], sources: Mapping[str, Source], words: str
) -> Iterator[str]:
    """Yields the HTML of the page, part by part."""
    first = next(iter(sources.values())).name  # 'FOLDER:train'
    name = html.escape(first.rpartition(':')[0] or first)
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<title>Preview of {name}</title><style>{_STYLE}</style></head><body><h1>Preview of {name}</h1>'
    )
    # List the faults, then leakage, then the suspicious images of each split.
    if summary['faults']:
        yield '<p class="bad">Training would refuse this data:</p><ul>'
        yield from (f'<li>{html.escape(fault)}</li>' for fault in summary['faults'])
        yield '</ul>'
    pictures = _Pictures(summary, sources)
    if summary['leakage']:
        yield f'<h2 class="bad">Leakage: images in two splits ({len(summary["leakage"]):,})</h2>'
        yield from (pictures.row(pair) for pair in summary['leakage'][:_EACH])
    if near := summary['near']:
        yield f'<h2>Nearly the same images ({len(near):,} pairs{" or more" if len(near) == nearness.PAIRS else ""})</h2>'
        yield from (pictures.row(pair[:2]) for pair in near[:_EACH])
    for split, s in summary['splits'].items():
        if s['unreadable']:
            yield f'<h2>{split}: unreadable images ({len(s["unreadable"]):,})</h2><ul>'
            lines = (
                f'{pictures.short(n)}: {why}' for n, why in list(s['unreadable'].items())[:_EACH]
            )
            yield from (f'<li>{html.escape(line)}</li>' for line in lines)
            yield '</ul>'
        if s['copies']:
            yield f'<h2>{split}: groups of exact copies ({len(s["copies"]):,})</h2>'
            yield from (pictures.row(names[:_EACH]) for names in s['copies'][:_EACH])
        for kind in ODDITIES:
            if names := s['odd'].get(kind):
                yield f'<h2>{split}: {kind} images ({len(names):,})</h2>'
                yield pictures.row(names[:_EACH])
        if s['outliers']:
            yield f'<h2>{split}: images far from all others ({len(s["outliers"]):,})</h2>'
            yield pictures.row(list(s['outliers'])[:_EACH])
    # The two pictures and the summary.
    for title, file in (('Training images', 'inputs.png'), ('Classes', 'classes.png')):
        data = base64.b64encode((folder / file).read_bytes()).decode()
        yield f'<h2>{title}</h2><img class="wide" alt="{title}" src="data:image/png;base64,{data}">'
    yield f'<h2>Summary</h2><pre>{html.escape(words)}</pre></body></html>'


class _Pictures:
    """The images of the page, by name."""

    def __init__(self, summary: Mapping[str, Any], sources: Mapping[str, Source]):
        # Collect the names first, so that each source is read once.
        wanted = {name for pair in summary['leakage'][:_EACH] for name in pair}
        wanted |= {name for pair in summary['near'][:_EACH] for name in pair[:2]}
        for s in summary['splits'].values():
            wanted |= {*list(s['outliers'])[:_EACH]}
            wanted |= {name for names in s['copies'][:_EACH] for name in names[:_EACH]}
            wanted |= {name for names in s['odd'].values() for name in names[:_EACH]}
        self._images: dict[str, np.ndarray] = {}
        for source in sources.values():
            ids = {i: n for i in range(source.num_examples) if (n := source.name_of(i)) in wanted}
            self._images |= {ids[i]: image for i, image in examples(source, ids)}
        paths = [path for source in sources.values() for path in source.paths or ()]
        self._root = os.path.commonpath(paths) if len(paths) > 1 else ''

    def short(self, name: str) -> str:
        """Returns a path relative to the common folder of all images."""
        return os.path.relpath(name, self._root) if self._root and os.path.isabs(name) else name

    def row(self, names: list[str]) -> str:
        """Returns the HTML of a row of images."""
        shown = ''.join(figure(self._images.get(name), self.short(name)) for name in names)
        return f'<div class="row">{shown}</div>'
