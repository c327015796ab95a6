"""The demo's page of duplicates: groups side by side, what to keep, and the list as CSV."""

import base64
import functools
import html
import io
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from vision.core.text import write_row
from vision.data.source import FileSource
from vision.prediction import pages
from vision.preprocess.pictures import Picture

_SIDE = 240  # pixels of the longer side of an image
_SHOWN = 24  # images of a group that are shown

# The positions of the images of a group that are kept, by the group's number.
Kept = dict[int, list[int]]


class Collection(Protocol):
    """Index that the demo shows; `vision.search.display.Similar` is one."""

    def __call__(self, source: FileSource, top_k: int) -> Iterable[Picture]:
        """Yields the pictures that are nearest to the image of a source."""

    def find(self, source: FileSource, top_k: int) -> list[dict[str, Any]]:
        """Returns the neighbours `{'path', 'score'}` of the image of a source."""

    def picture(self, neighbour: dict[str, Any]) -> Picture:
        """Returns the picture of a neighbour."""

    def compare(
        self, image: np.ndarray, neighbours: Iterable[dict[str, Any]]
    ) -> Iterable[tuple[Picture, Picture | None]]:
        """Yields each neighbour's picture with the part that an image, uint8 [H, W, C], shows, too.

        The second picture explains it; it is None where no part is found.
        """

    def duplicates(self) -> list[list[dict[str, Any]]]:
        """Returns groups of duplicates: lists of `{'path', 'score', 'keep'}`.

        The score of the first is 1. `keep` is False if the image could be deleted.
        """


def csv_link(name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns an HTML link that saves rows as a CSV file, without another request."""
    file = io.TextIOWrapper(io.BytesIO(), 'utf-8', newline='')
    for row in (header, *rows):
        write_row(row, file)
    file.flush()
    data = base64.b64encode(file.buffer.getvalue()).decode()  # type: ignore[attr-defined]
    return (
        f'<a class="csv" download="{name}" href="data:text/csv;charset=utf-8;base64,{data}">'
        f'Save as {name}</a>'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns an HTML table of text."""
    lines = (''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row) for row in rows)
    head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in header)
    body = ''.join(f'<tr>{line}</tr>' for line in lines)
    return f'<div class="list"><table><tr>{head}</tr>{body}</table></div>'


def printable(text: str) -> str:
    """Replaces bytes of file names that are not UTF-8, which JSON cannot hold, by escapes."""
    return text.encode('utf-8', 'backslashreplace').decode()


class Review:
    """Groups of duplicates of a collection, found once, and the decisions about them.

    It holds no decisions itself: they are the state of a browser's page.
    """

    def __init__(self, collection: Collection):
        """Takes the collection; its duplicates are found when they are first asked for."""
        self._collection, self._lock = collection, threading.Lock()

    @functools.cached_property
    def _found(self) -> list[list[dict[str, Any]]]:
        return self._collection.duplicates()

    def groups(self) -> list[list[dict[str, Any]]]:
        """Returns the groups; the first call compares all images."""
        with self._lock:  # several pages may ask at once
            return self._found

    def head(self, at: int) -> str:
        """Returns the line above a group, or what is said at the end."""
        count = len(self.groups())
        if not count:
            return '<p>There are no duplicates in the collection.</p>'
        if at >= count:
            return f'<p>That was the last of {count:,} groups.</p>'
        return f'<p>Group {at + 1:,} of {count:,}. Check the images to keep.</p>'

    def pictures(self, at: int) -> str:
        """Returns the images of a group side by side."""
        if at >= len(self.groups()):
            return ''
        group = self.groups()[at]
        shown = map(self._collection.picture, group[:_SHOWN])
        figures = [
            pages.figure(picture.image, f'{i}: {picture.caption}', side=_SIDE)
            for i, picture in enumerate(shown, 1)
        ]
        more = f'<p>and {len(group) - _SHOWN} more</p>' if len(group) > _SHOWN else ''
        return printable(f'<div class="row" id="group">{"".join(figures)}</div>{more}')

    def choices(self, at: int) -> list[tuple[str, str]]:
        """Returns a label and a value for each image of a group."""
        group = self.groups()[at] if at < len(self.groups()) else []
        sizes = [_size(found['path']) for found in group]
        texts = [f': {size / 1000:,.1f} kB' if size else '' for size in sizes]
        return [(f'{i + 1}{text}', str(i)) for i, text in enumerate(texts)]

    def best(self, at: int) -> list[str]:
        """Returns the values of the images of a group that are kept by default."""
        group = self.groups()[at] if at < len(self.groups()) else []
        return [str(i) for i, found in enumerate(group) if found['keep']]

    def list(self, kept: Kept) -> str:
        """Returns the table of the decisions so far, and its CSV."""
        rows = [
            (number + 1, found['path'], 'keep' if i in kept[number] else 'delete')
            for number in sorted(kept)
            for i, found in enumerate(self.groups()[number])
        ]
        if not rows:
            return ''
        header = ('group', 'path', 'decision')
        return printable(
            '<h3>Decisions</h3><p>Nothing is deleted: the list is for you. '
            f'{csv_link("duplicates.csv", header, rows)}</p>{table(header, rows)}'
        )


def _size(path: str) -> int:
    """Returns the bytes of a file; 0 for an example of a split, and for a file that is gone."""
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0


def build(gradio: Any, review: Review, guard: Callable[[Any], Any]) -> None:
    """Adds the page of duplicates to the present block of gradio.

    Args:
      gradio: the module.
      review: the groups.
      guard: makes a component refuse files in its value.
    """
    start = gradio.Button('Find duplicates', elem_id='find')
    at, kept = gradio.State(0), gradio.State({})
    head, pictures = gradio.HTML(), gradio.HTML()
    keep = guard(gradio.CheckboxGroup([], label='Keep', visible=False, elem_id='keep'))
    with gradio.Row(visible=False) as buttons:
        done = gradio.Button('Keep the checked images', variant='primary', elem_id='done')
        skip = gradio.Button('Skip', elem_id='skip')
    decisions = gradio.HTML()

    def show(number: int, decided: Kept) -> list[Any]:
        choices = review.choices(number)
        box = gradio.CheckboxGroup(
            choices=choices, value=review.best(number), visible=bool(choices)
        )
        return [
            number, decided, review.head(number), review.pictures(number), box,
            gradio.Row(visible=bool(choices)), review.list(decided),
        ]  # fmt: skip

    def decide(number: int, decided: Kept, chosen: list[str]) -> list[Any]:
        return show(number + 1, {**decided, number: [int(i) for i in chosen]})

    outputs = [at, kept, head, pictures, keep, buttons, decisions]
    options = {'api_name': False, 'queue': False}
    start.click(lambda: show(0, {}), None, outputs, **options)
    done.click(decide, [at, kept, keep], outputs, **options)
    skip.click(lambda number, decided: show(number + 1, decided), [at, kept], outputs, **options)
