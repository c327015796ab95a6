"""Paths, JSON without NaN, CSV that is read back unchanged, and tables for a terminal."""

import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from vision.core.errors import UserError

AnyPath = str | bytes | os.PathLike
PICTURES = ('.png', '.html')  # file types that figures can be written to
# Control characters, line ends, and characters that change the direction of text.
_CONTROLS = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]')


def as_list(paths: AnyPath | Iterable[AnyPath]) -> list[str]:
    """Returns one or several paths as a list of text.

    Raises:
      UserError: a value is not a path.
    """
    # Arrays without axes and open files are iterable, but are not several paths.
    one = getattr(paths, 'ndim', None) == 0 or hasattr(paths, 'read')
    if one or isinstance(paths, AnyPath) or not isinstance(paths, Iterable):
        return [os.fsdecode(_path(paths))]
    return [os.fsdecode(_path(x)) for x in paths]


def as_path(path: AnyPath) -> Path:
    """Returns one path, with ~ expanded to the home folder; raises UserError for other values."""
    # `expanduser` does not change `~name` if there is no user of that name.
    return Path(os.path.expanduser(os.fsdecode(_path(path))))


def output_file(flag: str, value: AnyPath, endings: Sequence[str] = ()) -> Path:
    """Checks and returns the path of an output file that a flag or argument names.

    Args:
      flag: name of the flag, for messages.
      value: the path.
      endings: allowed suffixes with their dots; empty allows any.

    Raises:
      UserError: the suffix is not allowed, the path is a folder, or its folder does not exist or is
        read-only.
    """
    path = as_path(value)
    # Check the suffix, the path and its folder.
    folder = path.absolute().parent
    if endings and path.suffix.lower() not in endings:
        raise UserError(f'--{flag}={path} must end in {" or ".join(endings)}')
    if os.path.isdir(path):
        raise UserError(f'--{flag}={path} is a folder; name a file')
    if not os.path.isdir(folder):
        raise UserError(f'--{flag}={path}: there is no folder {folder}')
    if not os.access(folder, os.W_OK):
        raise UserError(f'--{flag}={path}: the folder {folder} cannot be written to')
    return path


def _path(value: Any) -> Any:
    """Returns the value if it is a path; raises UserError otherwise."""
    # Bytes with a NUL are the contents of an image, not its path.
    if not isinstance(value, AnyPath) or (isinstance(value, bytes) and b'\0' in value):
        raise UserError(f'{value!r:.80} is not a path: give text, bytes or a pathlib.Path')
    return value


def common_root(paths: Iterable[str]) -> str:
    """Returns the deepest folder that contains all files; '' if there are no files."""
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    return os.path.commonpath(folders) if folders else ''


def below(path: str, root: str) -> str:
    """Returns a file's path relative to a folder; unchanged if the file is outside the folder."""
    # Compare absolute paths, with a slash at the end of the folder.
    whole, start = os.path.abspath(path), root.rstrip(os.sep) + os.sep
    return whole.removeprefix(start) if root and whole.startswith(start) else path


def json_text(value: Any, **options: Any) -> str:
    """Serialises a value as strict JSON, which has no NaN and Infinity.

    A number that is not finite becomes null. The object that holds the number names the original
    value under the key `not_finite`: `{"loss": NaN, "rates": [1.0, Infinity]}` is written as
    `{"loss": null, "rates": [1.0, null], "not_finite": {"loss": "NaN", "rates[1]": "Infinity"}}`.

    Args:
      value: any value that `json.dumps` accepts.
      options: keyword arguments of `json.dumps`.
    """
    # Convert only if a number is not finite, which is rare, because the conversion takes time.
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(without_nan(value), allow_nan=False, **options)


def without_nan(value: Any) -> Any:
    """Replaces floats that are not finite by None, in the form that `json_text` describes."""
    return _finite(value, '', {})


def _finite(value: Any, name: str, reasons: dict[str, str]) -> Any:
    """Implements `without_nan` recursively.

    Args:
      value: the value to convert.
      name: its name within the enclosing object.
      reasons: filled with the original values of that object, by name.
    """
    if isinstance(value, Mapping):
        # A dict collects the reasons for its own values.
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
    """Describes a result of a user-defined function in a few words.

    For example 'float32[8, 3]', 'dict (loss, top1)' or 'tuple (float, int)'.
    """
    if hasattr(value, 'shape') and hasattr(value, 'dtype'):
        return f'{value.dtype}{[*value.shape]}'
    kind = type(value).__name__
    if isinstance(value, dict | tuple | list):
        parts = value if isinstance(value, dict) else (type(x).__name__ for x in value)
        return f'{kind} ({", ".join(map(str, parts))})'
    return kind


def printable(text: str, file: TextIO) -> str:
    """Returns the text with escapes such as '\\udcff' for characters that a file cannot encode.

    Such characters are bytes of a file name that are not UTF-8, and non-ASCII characters on an
    ASCII terminal.
    """
    encoding = file.encoding or 'utf-8'
    return text.encode(encoding, 'backslashreplace').decode(encoding)


def on_one_line(text: str, file: TextIO) -> str:
    """Returns `printable` text with escapes for line ends and characters that change a terminal."""
    escaped = _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)
    return printable(escaped, file)


def write_row(cells: Sequence[Any], file: TextIO) -> None:
    """Writes a CSV row that `csv` and pandas read back as one row with the same text.

    Args:
      cells: numbers, or text with any characters, including carriage returns and quotes.
      file: a text file; characters that it cannot encode are escaped (`printable`).

    Raises:
      UserError: a cell contains a NUL, at which pandas and spreadsheets would cut it off.
    """
    for cell in cells:
        if isinstance(cell, str) and '\0' in cell:
            raise UserError(f'{cell!r} has a NUL character, which CSV cannot hold; use JSON')
    line = io.StringIO()
    # With lineterminator='\n' the writer would not quote carriage returns (CPython issue 67230).
    csv.writer(line, lineterminator='\r\n').writerow(cells)
    file.write(printable(line.getvalue().removesuffix('\r\n') + '\n', file))


def read_rows(
    lines: Iterable[str], name: str, once: Iterable[str] = ()
) -> list[dict[str, str | None]]:
    """Reads CSV with a header into a dict per row; missing cells are None.

    Args:
      lines: a file opened with `newline=''`, or lines with their line ends.
      name: the file's name, for messages.
      once: the columns that may not occur twice; of others the last is returned.

    Raises:
      UserError: quotes are not closed, or a cell contains a NUL or is too long; names the line. Or
        one of the columns `once` occurs twice.
    """
    reader = csv.DictReader(lines, strict=True)
    try:
        rows = list(reader)
        columns = list(reader.fieldnames or ())
    except csv.Error as e:
        raise UserError(f'{name}, line {reader.line_num}: not CSV ({e})') from None
    if twice := [column for column in once if columns.count(column) > 1]:
        raise UserError(
            f'{name}: the header {",".join(columns):.200} names a column twice, {twice[0]}'
        )
    for row in rows:
        row.pop(None, None)  # type: ignore[call-overload]  # cells beyond those of the header
    return rows


def print_table(table: Any, file: TextIO | None = None) -> None:
    """Prints a Rich table without breaking paths; it may be wider than the terminal.

    If the output is not a terminal, nothing is wrapped.

    Args:
      table: a table whose path columns have `no_wrap=True`, or text. Its title and caption are
        printed as separate lines.
      file: the output; stdout if None.
    """
    from rich.console import Console
    from rich.measure import Measurement

    file = file or sys.stdout
    if isinstance(table, str):
        print(table, file=file)
        return
    # Measure the table without a limit. Widen the console to the table's minimum width on a
    # terminal, and to its full width for a file or a pipe.
    console = Console(file=file)
    title, caption = table.title, table.caption
    table.title = table.caption = None
    wide = console.options.update(max_width=10**6)
    width = Measurement.get(console, wide, table)
    console.width = max(console.width, width.minimum if console.is_terminal else width.maximum)
    # Print title and caption as plain lines, which may be wrapped.
    for part in filter(None, (title, table, caption)):
        console.print(part, crop=False, soft_wrap=part is not table, markup=False, highlight=False)
    table.title, table.caption = title, caption


def figures_text(figures: dict[str, Any]) -> str:
    """Returns a line for each figure; a list of rows becomes a table below the others."""

    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f'{value:.4f}'
        return '–' if value is None else str(value)

    lines, rows = list[str](), list[dict[str, Any]]()
    for name, value in figures.items():
        if isinstance(value, list):
            rows = value
        else:
            lines.append(f'{name:>12}  {shown(value)}')
    for row in [{name: name for name in rows[0]}, *rows] if rows else ():
        first, *others = map(shown, row.values())
        lines.append(' '.join([f'{first:<18}', *(f'{text:>10}' for text in others)]))
    return '\n'.join(lines)
