"""Names and fields of the images in an index, and conditions on them, such as "width>800"."""

import ast
import contextlib
import datetime
import functools
import io
import mmap
import operator
import os
import tokenize
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from vision.core.errors import UserError, not_installed, unknown
from vision.core.text import AnyPath, as_path
from vision.data.source import OF_SPLIT
from vision.search.descriptions import Described

_OWN = ('path', 'folder', 'class', 'date', 'size', 'width', 'height')
_WORDS = {'and', 'or', 'not', 'in', 'is', 'None', 'True', 'False'}
_EXAMPLE = 'write it like "class=\'cat\' and width>800"'


def pyarrow() -> Any:
    """Imports and returns pyarrow with its compute functions.

    Raises:
      UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
    except ImportError:
        raise not_installed('search', 'pyarrow', 'search') from None
    return pyarrow


def table(images: Iterable[str | Described]) -> Any:
    """Returns a `pyarrow.Table` of images.

    Its columns are `path` (bytes, since a file name need not be UTF-8), `folder`, `class`, `date`,
    `size`, `width` and `height`. Unknown values are null.
    """
    pa = pyarrow()
    rows = [Described(x) if isinstance(x, str) else x for x in images]
    text = pa.dictionary(pa.int32(), pa.string())
    columns = {
        'path': pa.array([os.fsencode(row.path) for row in rows], pa.binary()),
        'folder': pa.array([_folder(row.path) for row in rows], text),
        'class': pa.array([utf8(row.label) if row.label else None for row in rows], text),
        'date': pa.array([row.modified for row in rows], pa.timestamp('us', 'UTC')),
        'size': pa.array([row.size for row in rows], pa.int64()),
        'width': pa.array([row.width for row in rows], pa.int32()),
        'height': pa.array([row.height for row in rows], pa.int32()),
    }
    return pa.table(columns)


def of_shard(shard: Any) -> Any:
    """Returns the table of the images of a shard (`shards.schema`)."""
    pa = pyarrow()
    text = pa.dictionary(pa.int32(), pa.string())
    folders = pa.array([_folder(path) for path in shard['path'].to_pylist()], text)
    columns = {'path': shard['path'].cast(pa.binary()), 'folder': folders}
    columns['class'] = shard['class'].dictionary_encode()
    return pa.table(columns | {name: shard[name] for name in _OWN[3:]})


def names(table: Any) -> list[str]:
    """Returns the names of the images of a table."""
    return [os.fsdecode(name) for name in table['path'].to_pylist()]


def utf8(name: str) -> str:
    """Returns a name as valid UTF-8, with escapes for invalid bytes."""
    return name.encode('utf-8', 'backslashreplace').decode()


def join(*tables: Any) -> Any:
    """Concatenates tables; a field that a table lacks is null in its rows.

    Raises:
      UserError: a field is text in one table and a number in another.
    """
    pa = pyarrow()
    try:
        return pa.concat_tables(tables, promote_options='permissive')
    except pa.ArrowException as e:
        raise UserError(f'--fields: {str(e).splitlines()[0]}') from None


def to_bytes(table: Any) -> Any:
    """Returns a table as an Arrow IPC file."""
    pa = pyarrow()
    sink = pa.BufferOutputStream()
    table = table.combine_chunks().unify_dictionaries()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def map_file(file: BinaryIO, start: int, length: int) -> Any:
    """Maps the table in a part of a file into memory, without reading it."""
    pa = pyarrow()
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    part = pa.py_buffer(memoryview(whole)[start : start + length])
    return pa.ipc.open_file(pa.BufferReader(part)).read_all()


class Own:
    """User-defined fields of images from a CSV file whose column `path` names the images.

    Attributes:
      used: the number of images that were found in the file so far.
    """

    def __init__(self, path: AnyPath):
        """Reads the file; its paths may be relative to the current folder.

        Raises:
          UserError: the file cannot be read, has no column `path`, names a path twice, has a column
            twice, or has a column name that is reserved or not an identifier.
        """
        pa, file = pyarrow(), as_path(path)
        from pyarrow import csv

        self._file, self.used = file, 0
        try:
            self._table = csv.read_csv(os.fspath(file))
        except (pa.ArrowException, OSError) as e:
            raise UserError(f'--fields={file}: {str(e).splitlines()[0]}') from None
        # Check the names of the columns.
        if 'path' not in self._table.column_names:
            raise UserError(f'--fields={file} has no column path, by which rows belong to images')
        for name in self._table.column_names:
            if self._table.column_names.count(name) > 1:
                raise UserError(f'--fields={file} has the column {name} twice')
            if name != 'path' and (name in _OWN or not name.isidentifier() or name in _WORDS):
                raise UserError(f'--fields={file}: a field cannot be called {name!r}; rename it')
        # Map the name of each image to its row.
        self._rows: dict[str, int] = {}
        for row, name in enumerate(map(str, self._table['path'].to_pylist())):
            name = name if OF_SPLIT.fullmatch(name) else os.path.abspath(name)
            if name in self._rows:
                raise UserError(f'--fields={file} names {name} twice')
            self._rows[name] = row

    def join(self, table: Any) -> Any:
        """Adds the fields to a table of images; they are null for images that the file lacks."""
        found = [self._rows.get(name) for name in names(table)]
        self.used += sum(row is not None for row in found)
        picked = self._table.drop_columns(['path']).take(pyarrow().array(found, 'int64'))
        for name in picked.column_names:
            table = table.append_column(name, picked[name])
        return table

    def check_used(self) -> None:
        """Raises UserError if the file names none of the images that were joined."""
        if not self.used:
            raise UserError(
                f'--fields={self._file} names none of the images, for example {next(iter(self._rows))}'
            )


def choose(table: Any, where: str) -> np.ndarray:
    """Returns the images that fulfil a condition, bool [N].

    Args:
      table: N images.
      where: comparisons of fields with literals or fields (=, !=, <, <=, >, >=, in, not in, is
        None) joined by and, or, not and parentheses: "class in ('cat', 'dog') and width > 800".
        An image whose field is null fulfils no comparison.

    Raises:
      UserError: the condition does not have this form, a field is unknown, or a field is compared
        with a value of another type.
    """
    pa = pyarrow()
    condition = Condition(where, table.schema)
    numbered = table.select(sorted(condition.used))
    numbered = numbered.append_column(_NUMBER, pa.array(np.arange(len(table))))
    chosen = np.zeros(len(table), bool)
    try:
        chosen[numbered.filter(condition.expression)[_NUMBER].to_numpy()] = True
    except pa.ArrowException as e:
        raise UserError(f'--where={where}: {str(e).splitlines()[0]}') from None
    return chosen


class Condition:
    """A condition on fields as a pyarrow expression. It is never evaluated as Python code.

    Attributes:
      tree: the syntax tree, in which a field is a name with `_` appended.
      expression: a `pyarrow.compute.Expression`.
      used: the fields that the condition names.
    """

    def __init__(self, where: str, schema: Any):
        """Parses a condition; see `choose`."""
        self._where, self._schema, self.used = where, schema, set[str]()
        self.tree = self._parse()
        self.expression = self._condition(self.tree)

    def _parse(self) -> ast.expr:
        """Parses the text as a Python expression, in which `=` and the name `class` are allowed."""
        try:
            words = []
            for token in tokenize.generate_tokens(io.StringIO(self._where.strip()).readline):
                text = '==' if token.string == '=' else token.string
                if token.type == tokenize.NAME and text not in _WORDS:
                    text += '_'
                words.append((token.type, text))
            return ast.parse(tokenize.untokenize(words).strip(), mode='eval').body
        except (SyntaxError, tokenize.TokenError, ValueError, RecursionError, MemoryError):
            raise UserError(f'--where={self._where}: not a condition; {_EXAMPLE}') from None

    def _condition(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return functools.reduce(join, map(self._condition, node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._condition(node.operand)
        if not isinstance(node, ast.Compare):
            raise self._mistake(node)
        # 100 < width < 200 has two comparisons.
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        return functools.reduce(operator.and_, (self._compare(*pair) for pair in pairs))

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        named = [x for x in (left, right) if isinstance(x, ast.Name)]
        if not named:
            raise self._mistake(left)
        # Two fields must have comparable types.
        kind = self.kind(named[0])
        groups = [_group(self.kind(x)) for x in named]
        if len({*groups} - {'null'}) > 1:
            one, other = (
                f'{ast.unparse(x)[:-1]} ({g})' for x, g in zip(named, groups, strict=True)
            )
            raise UserError(f'--where={self._where}: {one} cannot be compared with {other}')
        if type(op) in _COMPARE:
            return _COMPARE[type(op)](self._side(left, kind), self._side(right, kind))
        # `is None` and `in` have the field on the left.
        field = self._side(left, kind)
        if isinstance(op, ast.Is | ast.IsNot) and ast.unparse(right) == 'None':
            return field.is_null() if isinstance(op, ast.Is) else field.is_valid()
        if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple | ast.List):
            equal = (field == self._side(value, kind) for value in right.elts)
            found = functools.reduce(operator.or_, equal, pyarrow().compute.scalar(False))
            return found if isinstance(op, ast.In) else ~found
        raise self._mistake(right)

    def kind(self, node: ast.Name) -> Any:
        """Returns the type that a field is compared as, and notes that the field is used."""
        name, types = node.id.removesuffix('_'), pyarrow().types
        known = [n for n in self._schema.names if n != 'path']
        if name not in known:
            raise unknown('field', name, known)
        self.used.add(name)
        kind = self._schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return date() if types.is_timestamp(kind) or types.is_date(kind) else kind

    def _side(self, node: ast.expr, kind: Any) -> Any:
        """Returns one side of a comparison: a field, or a literal of a comparable type."""
        pa = pyarrow()
        if isinstance(node, ast.Name):
            own = self.kind(node)
            field = pa.compute.field(node.id.removesuffix('_'))
            if own != date():
                return field if pa.types.is_null(own) else field.cast(own)
            # Truncate the nanoseconds of a CSV file to microseconds.
            return field.cast(pa.timestamp('us'), safe=False).cast(own)
        return self.literal(node, kind)

    def literal(self, node: ast.expr, kind: Any) -> Any:
        """Returns a literal as a `pyarrow.Scalar` that is comparable with the type `kind`."""
        pa = pyarrow()
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise self._mistake(node) from None
        # Dates are written as text.
        if kind == date() and isinstance(value, str):
            with contextlib.suppress(ValueError):
                day = datetime.datetime.fromisoformat(value)
                return pa.scalar(day if day.tzinfo else day.replace(tzinfo=datetime.UTC), kind)
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if type(value) in (int, float) if number else type(value) is _LITERALS.get(str(kind)):
            with contextlib.suppress(pa.ArrowInvalid, OverflowError):
                return pa.scalar(value)
        what = "a date like '2024-05-01'" if kind == date() else f'a value of type {kind}'
        raise UserError(f'--where={self._where}: {ast.unparse(node)} is not {what}')

    def _mistake(self, node: ast.expr) -> UserError:
        text = ast.unparse(node).replace('_', '')
        return UserError(f'--where={self._where}: {text} is no comparison of a field; {_EXAMPLE}')


_NUMBER = 'number of the image'
_LITERALS = {'string': str, 'bool': bool}
_COMPARE: dict[type, Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def date() -> Any:
    """Returns the type that dates are compared as."""
    return pyarrow().timestamp('us', 'UTC')


def _group(kind: Any) -> str:
    """Returns the name of the group of types that can be compared with each other."""
    types = pyarrow().types
    number = types.is_integer(kind) or types.is_floating(kind)
    return 'number' if number else 'date' if kind == date() else str(kind)


def _folder(name: str) -> str | None:
    return None if OF_SPLIT.fullmatch(name) else utf8(os.path.dirname(name))
