"""Text that others read and write: paths, JSON without NaN, CSV that reads back as it was written, tables for a terminal."""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from vision.core.errors import UserError

AnyPath = str | bytes | os.PathLike
PICTURES = ('.png', '.html')  # what pictures may be written to


def as_list(paths: AnyPath | Iterable[AnyPath]) -> list[str]:
    """The paths as text. A single path is a list of one, not of its letters.

    Raises:
      UserError: something that is no path.
    """
    # An array of no axes and an open file can be iterated over, and are not several paths.
    one = getattr(paths, 'ndim', None) == 0 or hasattr(paths, 'read')
    if one or isinstance(paths, AnyPath) or not isinstance(paths, Iterable):
        return [os.fsdecode(_path(paths))]
    return [os.fsdecode(_path(x)) for x in paths]


def as_path(path: AnyPath) -> Path:
    """One path, with ~ for the home folder; UserError for something else."""
    # `~name` of a user that is not known is part of a name.
    return Path(os.path.expanduser(os.fsdecode(_path(path))))


def output_file(flag: str, value: AnyPath, endings: Sequence[str] = ()) -> Path:
    """The file that a flag, or an argument, says to write to.

    Args:
      flag: its name.
      value: of the flag.
      endings: that the file may have, with their dots; any if empty.

    Raises:
      UserError: it has another ending, is a folder, or its folder is not there or is read only.
    """
    path = as_path(value)
    folder = path.absolute().parent
    if endings and path.suffix.lower() not in endings:
        raise UserError(f'--{flag}={path}: it must end in {" or ".join(endings)}')
    if os.path.isdir(path):
        raise UserError(f'--{flag}={path} is a folder; name a file')
    if not os.path.isdir(folder):
        raise UserError(f'--{flag}={path}: there is no folder {folder}')
    if not os.access(folder, os.W_OK):
        raise UserError(f'--{flag}={path}: the folder {folder} cannot be written to')
    return path


def _path(value: Any) -> Any:
    # Bytes with a NUL are an image's own.
    if not isinstance(value, AnyPath) or (isinstance(value, bytes) and b'\0' in value):
        raise UserError(f'{value!r:.80} is no path: give text, bytes or a pathlib.Path')
    return value


def common_root(paths: Iterable[str]) -> str:
    """The deepest folder that all files lie below; '' for no files."""
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    return os.path.commonpath(folders) if folders else ''


def below(path: str, root: str) -> str:
    """A file's path below a folder; as it is if it lies elsewhere."""
    whole, start = os.path.abspath(path), root.rstrip(os.sep) + os.sep
    return whole.removeprefix(start) if root and whole.startswith(start) else path


def json_text(value: Any, **options: Any) -> str:
    """JSON as every parser reads it, without NaN and Infinity: a number that is not finite becomes null, with the reason beside it.

    The reason is in the object that holds the number, under the key `not_finite`:
    `{"loss": NaN, "rates": [1.0, Infinity]}` is written as
    `{"loss": null, "rates": [1.0, null], "not_finite": {"loss": "NaN", "rates[1]": "Infinity"}}`.

    Args:
      value: what `json.dumps` takes.
      options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(without_nan(value), allow_nan=False, **options)


def without_nan(value: Any) -> Any:
    """The value as `json_text` writes it: None for a float that is not finite, with the reason beside it."""
    return _finite(value, '', {})


def _finite(value: Any, name: str, reasons: dict[str, str]) -> Any:
    """The value without such numbers; `reasons` gets theirs, by name in the object that holds them."""
    if isinstance(value, Mapping):
        own: dict[str, str] = {}
        made = {key: _finite(v, str(key), own) for key, v in value.items()}
        return made | {'not_finite': own} if own else made
    if isinstance(value, list | tuple):
        return [_finite(v, f'{name}[{i}]', reasons) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        reasons[name] = 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
        return None
    return value


def described(value: Any) -> str:
    """A result of a user's own function in a few words: 'float32[8, 3]', 'dict (loss, top1)', 'tuple (float, int)'."""
    if hasattr(value, 'shape') and hasattr(value, 'dtype'):
        return f'{value.dtype}{[*value.shape]}'
    kind = type(value).__name__
    if isinstance(value, dict | tuple | list):
        parts = value if isinstance(value, dict) else (type(x).__name__ for x in value)
        return f'{kind} ({", ".join(map(str, parts))})'
    return kind


def printable(text: str, file: TextIO) -> str:
    """The text, with '\\udcff' and the like for what a file cannot take.

    Bytes of a file's name that are not UTF-8 are such, and whatever an ASCII terminal lacks.
    """
    encoding = file.encoding or 'utf-8'
    return text.encode(encoding, 'backslashreplace').decode(encoding)


def write_row(cells: Sequence[Any], file: TextIO) -> None:
    """Writes a row of CSV that `csv` and pandas read back as one row with the same text.

    Args:
      cells: text with any characters, carriage returns and quotes too, or numbers.
      file: of text; what its encoding lacks is escaped (`printable`).

    Raises:
      UserError: a cell has a NUL, which pandas and spreadsheets take for its end.
    """
    for cell in cells:
        if isinstance(cell, str) and '\0' in cell:
            raise UserError(f'{cell!r} has a NUL character, which CSV cannot hold; write JSON')
    line = io.StringIO()
    # With lineterminator='\n' a carriage return would go without quotes (CPython issue 67230 and its kin).
    csv.writer(line, lineterminator='\r\n').writerow(cells)
    file.write(printable(line.getvalue().removesuffix('\r\n') + '\n', file))


def read_rows(lines: Iterable[str], name: str) -> list[dict[str, str | None]]:
    """Reads CSV with a header: a dict a row, with None for cells that a row lacks.

    Args:
      lines: a file that was opened with `newline=''`, or lines with their ends.
      name: of the file, for messages.

    Raises:
      UserError: quotes that are not closed, a NUL, or a cell that is too long; the text names the line.
    """
    reader = csv.DictReader(lines, strict=True)
    try:
        rows = list(reader)
    except csv.Error as e:
        raise UserError(f'{name}, line {reader.line_num}: not CSV ({e})') from None
    for row in rows:
        row.pop(None, None)  # type: ignore[call-overload]  # cells beyond the header's
    return rows


def print_table(table: Any, file: TextIO | None = None) -> None:
    """Prints a table of rich that breaks no path: columns that are not wrapped may make it wider than a terminal.

    Args:
      table: its columns of paths have `no_wrap=True`; title and caption are lines of their own. Or text.
      file: stdout unless it is given.
    """
    from rich.console import Console
    from rich.measure import Measurement

    file = file or sys.stdout
    if isinstance(table, str):
        print(table, file=file)
        return
    console = Console(file=file)
    title, caption = table.title, table.caption
    table.title = table.caption = None
    wide = console.options.update(max_width=10**6)
    console.width = max(console.width, Measurement.get(console, wide, table).minimum)
    for part in filter(None, (title, table, caption)):
        console.print(part, crop=False, soft_wrap=part is not table, markup=False, highlight=False)
    table.title, table.caption = title, caption
