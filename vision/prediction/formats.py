"""Predictions as a table, JSON, JSON lines or CSV."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

Prediction = dict[str, Any]


def write(predictions: Iterable[Prediction], form: str, file: TextIO | None = None) -> int:
    """Writes predictions as they come (a table and a JSON document at the end).

    Args:
      predictions: as `Classifier.classify_files` yields them.
      form: table, json, jsonl or csv.
      file: stdout unless it is given.

    Returns:
      How many of them are errors.
    """
    failed = 0

    def counted() -> Iterator[Prediction]:
        nonlocal failed
        for prediction in predictions:
            failed += prediction['error'] is not None
            yield prediction

    _WRITERS[form](counted(), file or sys.stdout)
    return failed


def _json(predictions: Iterable[Prediction], file: TextIO) -> None:
    json.dump(list(predictions), file, indent=2, ensure_ascii=False)
    file.write('\n')


def _jsonl(predictions: Iterable[Prediction], file: TextIO) -> None:
    for prediction in predictions:
        file.write(json.dumps(prediction, ensure_ascii=False) + '\n')


def _csv(predictions: Iterable[Prediction], file: TextIO) -> None:
    """One row for each class that is named; an image that could not be read has one row."""
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['path', 'rank', 'class', 'index', 'probability', 'error'])
    for p in predictions:
        if p['error'] is not None:
            writer.writerow([p['path'], '', '', '', '', p['error']])
        for rank, c in enumerate(p['predictions'], 1):
            writer.writerow([p['path'], rank, c['class'], c['index'], c['probability'], ''])


def _table(predictions: Iterable[Prediction], file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ('image', 'class', 'probability', 'then'):
        table.add_column(
            name, justify='right' if name == 'probability' else 'left', overflow='fold'
        )
    for p in predictions:
        if p['error'] is not None:
            table.add_row(Text(p['path']), Text(f'cannot be read: {p["error"]}', 'red'), '', '')
            continue
        best, *rest = p['predictions']
        then = ', '.join(f'{c["class"]} {c["probability"]:.1%}' for c in rest)
        table.add_row(
            Text(p['path']), Text(best['class'], 'bold'), f'{best["probability"]:.1%}', Text(then)
        )
    Console(file=file).print(table)


_WRITERS = {'table': _table, 'json': _json, 'jsonl': _jsonl, 'csv': _csv}
