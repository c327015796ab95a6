"""Output formats of predictions and search results: table, JSON, JSON lines and CSV."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from vision.core.text import json_text, on_one_line, print_table, printable, write_row
from vision.data.source import shown_name

Prediction = dict[str, Any]

# Rows of one table. Longer output becomes several tables, because rich lays a table out as a whole.
_TABLE_ROWS = 1000


def write(predictions: Iterable[Prediction], form: str, file: TextIO | None = None) -> int:
    """Writes predictions as they arrive; tables are written at the end.

    Args:
      predictions: as `Classifier.classify_files` yields them.
      form: 'table', 'json', 'jsonl' or 'csv'.
      file: stdout by default.

    Returns:
      The number of predictions that are errors.
    """
    # Count the errors while streaming, because the predictions may not fit in memory.
    failed = 0

    def counted() -> Iterator[Prediction]:
        nonlocal failed
        for prediction in predictions:
            failed += prediction['error'] is not None
            yield prediction

    _WRITERS[form](counted(), file or sys.stdout)
    return failed


def dump_json(value: Any, file: TextIO, indent: int | None = None) -> str:
    """Returns JSON that `file` can encode: characters that it cannot encode are escaped."""
    text = json_text(value, ensure_ascii=False, indent=indent)
    if printable(text, file) == text:
        return text
    return json_text(value, indent=indent)


def _json(predictions: Iterable[Prediction], file: TextIO) -> None:
    # Write the brackets and commas of one JSON list by hand, so that it can be streamed.
    separator = '[\n'
    for prediction in predictions:
        text = dump_json(prediction, file, indent=2)
        file.write(separator + '\n'.join(f'  {line}' for line in text.split('\n')))
        separator = ',\n'
    file.write('[]\n' if separator == '[\n' else '\n]\n')


def _jsonl(predictions: Iterable[Prediction], file: TextIO) -> None:
    for prediction in predictions:
        file.write(dump_json(prediction, file) + '\n')


def _csv(predictions: Iterable[Prediction], file: TextIO) -> None:
    """Writes one row for each predicted class; an image with no class or an error has one row."""
    write_row(('path', 'rank', 'class', 'index', 'probability', 'error'), file)
    for p in predictions:
        if p['error'] is not None or not p['predictions']:
            write_row((p['path'], '', '', '', '', p['error'] or ''), file)
        for rank, c in enumerate(p['predictions'], 1):
            write_row((p['path'], rank, c['class'], c['index'], c['probability'], ''), file)


def _table(predictions: Iterable[Prediction], file: TextIO) -> None:
    from rich.table import Table
    from rich.text import Text

    # The four cells of a row; an error or an empty answer takes the place of the class.
    def row(p: Prediction) -> tuple[str, str, str, str]:
        if p['error'] is not None:
            return p['path'], f'cannot be read: {p["error"]}', '', ''
        # A multi-label model may name no class.
        if not p['predictions']:
            return p['path'], 'none', '', ''
        best, *rest = p['predictions']
        then = ', '.join(f'{c["class"]} {c["probability"]:.1%}' for c in rest)
        return p['path'], best['class'], f'{best["probability"]:.1%}', then

    rows = iter([tuple(on_one_line(cell, file) for cell in row(p)) for p in predictions])
    while chunk := list(itertools.islice(rows, _TABLE_ROWS)):
        table = Table()
        table.add_column('image', no_wrap=True)
        table.add_column('class', overflow='fold')
        table.add_column('probability', justify='right', no_wrap=True)
        table.add_column('then', overflow='fold')
        for path, answer, probability, then in chunk:
            style = 'bold' if probability or answer == 'none' else 'red'
            table.add_row(Text(path), Text(answer, style), probability, Text(then))
        print_table(table, file)


def write_neighbours(results: Iterable[dict[str, Any]], file: TextIO, root: str = '') -> None:
    """Writes search results as a table to `file`.

    Args:
      results: as `vision.search.query` yields them, or as `vision.search.find_duplicates` returns
        them, with what shows that two images are duplicates and with the image to keep.
      file: where to write.
      root: the folder that paths are shown relative to, with a line above the table that names it;
        other files have absolute paths. '' for paths as they are.
    """
    from rich.table import Table
    from rich.text import Text

    table, results = Table(), list(results)
    if root:
        table.title = Text(on_one_line(f'Paths are relative to {root}', file))
    table.add_column('image', no_wrap=True)
    table.add_column('nearest', no_wrap=True)
    table.add_column('score', justify='right')
    if duplicates := any('keep' in r for r in results):
        table.add_column('by')
    for r in results:
        lines = [
            (shown_name(n['path'], root), f'{n["score"]:.4f}', n.get('stage', ''))
            for n in r['neighbours']
        ]
        if 'error' in r:
            lines = [(f'cannot be read: {r["error"]}', '', '')]
        if r.get('keep'):
            lines.append((f'keep {shown_name(r["keep"], root)}', '', ''))
        # Name the query image on the first line of its neighbours only.
        for i, (nearest, *more) in enumerate(lines):
            name = shown_name(r['path'], root) if i == 0 else ''
            cells = [Text(on_one_line(text, file)) for text in (name, nearest)]
            last = i == len(lines) - 1
            table.add_row(*cells, *more[: 1 + duplicates], end_section=last)
    print_table(table, file)


_WRITERS = {'table': _table, 'json': _json, 'jsonl': _jsonl, 'csv': _csv}
