"""Tables as text: CSV that reads back as it was written, and tables for a terminal that leave paths whole."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from vision.core.errors import UserError


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
