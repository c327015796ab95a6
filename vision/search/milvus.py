"""Index of image vectors in Milvus, a vector database, for collections beyond one file or machine.

`milvus:FILE.db` is Milvus Lite, which runs inside this process. `milvus:http://HOST:19530` is a
server, whose token is read from the environment variable MILVUS_TOKEN. `#NAME` at the end names the
collection. Each image is a row with the primary key `path`, the fields of `fields.table` and the
user-defined fields. A second collection, NAME_about, has one row with the fingerprint and the types
of the fields, since Milvus Lite does not store the description of a collection.
"""

import ast
import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError, at_least_one, not_installed
from vision.core.text import json_text
from vision.prediction.classifier import Classifier
from vision.search import fields, fingerprint
from vision.search.index import unit

PREFIX = 'milvus:'
_ROWS = 1000  # rows of one request
_LONGEST = 4096  # maximum number of bytes of a path, as on Linux
_METRICS = {'cosine': 'COSINE', 'euclidean': 'L2'}
_LISTS = 4096  # number of lists of IVF-PQ
# The types of fields by their names in Milvus; a date is in microseconds since 1970.
_TYPES = {
    'string': 'VARCHAR',
    'bool': 'BOOL',
    'date': 'INT64',
    'int64': 'INT64',
    'double': 'DOUBLE',
}


class MilvusIndex:
    """An index in a Milvus collection, with the methods of `index.Index` that commands use.

    Every change is written immediately, so `save` does nothing.

    Attributes:
      made_by: `fingerprint.made_by` of the classifier that computed the vectors.
      metric: 'cosine' or 'euclidean'.
      kind: 'exact', 'hnsw' or 'ivfpq'.
      fields: the type of each field, a key of `_TYPES`, by name.
      read: always None, because a collection is not a file.
      whiten: always 0, because vectors are not whitened.
    """

    read = None
    training_size = 0  # Milvus trains its lists itself
    whiten = 0

    def __init__(self, client: Any, name: str, about: dict[str, Any]):
        """Initialises the index from a client, a collection's name, and the attributes by name."""
        self._client, self._name = client, name
        self.made_by, self.metric, self.kind = about['made_by'], about['metric'], about['kind']
        self.fields: dict[str, str] = about['fields']
        self._size = about.get('size', 1)

    def __len__(self) -> int:
        with _in_a_line():
            return self._client.query(self._name, output_fields=['count(*)'])[0]['count(*)']

    @property
    def names(self) -> list[str]:
        """The names of all images, sorted."""
        return sorted(row['path'] for row in self._every('path'))

    @property
    def approximate(self) -> bool:
        """True if the search is approximate."""
        return self.kind != 'exact'

    def recall(self) -> None:
        """Returns None, because Milvus does not report the recall of its results."""

    def add(self, images: Any, vectors: np.ndarray) -> None:
        """Adds images, or replaces those of the same name.

        Args:
          images: a table of n rows (`fields.table`).
          vectors: float32 [n, D].
        """
        self.check_fields(images)
        # Convert the table to rows, with dates as integers.
        columns = {'path': [fields.utf8(name) for name in fields.names(images)]}
        for name in images.column_names[1:]:
            column = images[name]
            if self.fields[name] == 'date':
                column = column.cast(fields.date()).cast('int64')
            columns[name] = column.to_pylist()
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        ready = unit(vectors) if self.metric == 'cosine' else vectors
        for row, vector in zip(rows, ready, strict=True):
            row['vector'] = vector.tolist()
        # Write the rows in requests of limited size.
        for start in range(0, len(rows), _ROWS):
            with _in_a_line():
                self._client.upsert(self._name, rows[start : start + _ROWS])

    def check_fields(self, images: Any) -> None:
        """Raises UserError unless the fields of a table of images are those of the collection."""
        for name in images.column_names[1:]:
            kind = _type(images.schema.field(name).type)
            if self.fields.get(name) != kind:
                raise UserError(
                    f'the field {name} is {kind}, and {self.fields.get(name, "missing")} in the '
                    'collection; its fields are those of `build`'
                )

    def with_own(
        self, batches: Iterable[tuple[Any, np.ndarray]]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Adds to tables of images the fields that only the collection has for these images."""
        pa, schema = fields.pyarrow(), self._schema()
        for table, vectors in batches:
            other = [name for name in self.fields if name not in table.column_names]
            ids = [fields.utf8(name) for name in fields.names(table)]
            # Read the rows of these images; images that are not in the collection have none.
            rows: dict[str, dict[str, Any]] = {}
            for start in range(0, len(ids) if other else 0, _ROWS):
                some = ids[start : start + _ROWS]
                with _in_a_line():
                    found = self._client.get(self._name, some, output_fields=['path', *other])
                rows |= {row['path']: row for row in found}
            # Append the other fields as columns, and convert dates back from integers.
            for name in other:
                values, kind = [rows.get(x, {}).get(name) for x in ids], schema.field(name).type
                is_date = kind == fields.date()
                column = pa.array(values, 'int64' if is_date else kind)
                table = table.append_column(name, column.cast(kind) if is_date else column)
            yield table, vectors

    def remove(self, names: Collection[str]) -> int:
        """Removes images by their names; returns the number of removed images."""
        before, ids = len(self), [fields.utf8(name) for name in names]
        for start in range(0, len(ids), _ROWS):
            with _in_a_line():
                self._client.delete(self._name, ids=ids[start : start + _ROWS])
        return before - len(self)

    def nearest(
        self, vectors: np.ndarray, k: int, where: str | None = None
    ) -> list[list[tuple[str, float]]]:
        """Returns up to k nearest images of each vector; see `index.Index.nearest`."""
        at_least_one('k', k)
        condition = _expression(fields.Condition(where, self._schema())) if where else ''
        ready = unit(vectors) if self.metric == 'cosine' else vectors
        with _in_a_line():
            found = self._client.search(
                self._name,
                ready.tolist(),
                condition,
                k,
                search_params={'metric_type': _METRICS[self.metric]},
            )
        # Milvus returns the square of the distance.
        score = (
            (lambda d: max(d, 0) ** 0.5) if self.metric == 'euclidean' else (lambda d: min(d, 1))
        )
        return [[(hit['path'], float(score(hit['distance']))) for hit in hits] for hits in found]

    def vectors(self) -> np.ndarray:
        """Returns the stored vectors, float32 [N, D], in the order of `names`."""
        rows = sorted(self._every('path', 'vector'), key=lambda row: row['path'])
        return np.array([row['vector'] for row in rows], np.float32).reshape(-1, self._size)

    def check(self, classifier: Classifier, endpoint: str | None = None) -> None:
        """Raises UserError unless the classifier made the vectors of this index."""
        fingerprint.check(self.made_by, classifier, endpoint)

    def train(self, vectors: np.ndarray) -> None:
        """Does nothing: Milvus trains its lists itself."""

    def save(self, path: Any) -> None:
        """Does nothing: every change is written immediately."""

    def _every(self, *columns: str) -> Iterator[dict[str, Any]]:
        with _in_a_line():
            rows = self._client.query_iterator(self._name, output_fields=list(columns))
            while batch := rows.next():
                yield from batch
            rows.close()

    def _schema(self) -> Any:
        """Returns the fields with the types in which conditions compare them."""
        pa = fields.pyarrow()
        kinds = {'date': fields.date(), 'string': pa.string(), 'bool': pa.bool_()}
        kinds |= {'int64': pa.int64(), 'double': pa.float64()}
        return pa.schema([(name, kinds[kind]) for name, kind in self.fields.items()])

    def drop(self) -> None:
        """Removes the collection."""
        with _in_a_line():
            _drop(self._client, self._name)


def _expression(condition: fields.Condition) -> str:
    """Returns a condition in the query language of Milvus."""

    def text(node: Any, no: bool) -> str:
        # Move `not` into the comparisons, so that an image with an unknown value fulfils none.
        if isinstance(node, ast.UnaryOp):
            return text(node.operand, not no)
        if isinstance(node, ast.BoolOp):
            word = ' and ' if isinstance(node.op, ast.And) != no else ' or '
            return word.join(f'({text(value, no)})' for value in node.values)
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        return (' or ' if no else ' and ').join(f'({compared(*pair, no)})' for pair in pairs)

    def compared(left: Any, op: Any, right: Any, no: bool) -> str:
        names = [x for x in (left, right) if isinstance(x, ast.Name)]
        kind = condition.kind(names[0])

        def side(node: Any) -> str:
            if isinstance(node, ast.Name):
                return node.id.removesuffix('_')
            if isinstance(node, ast.Tuple | ast.List):
                return f'[{", ".join(map(side, node.elts))}]'
            value = condition.literal(node, kind)
            value = value.cast('int64') if kind == fields.date() else value
            # Milvus Lite does not support escapes such as \u00e9.
            return json_text(value.as_py(), ensure_ascii=False)

        word = _OPPOSITES[type(op)] if no else type(op)
        if word in (ast.Is, ast.IsNot):
            return f'{side(left)} is {"not " if word is ast.IsNot else ""}null'
        known = ''.join(f'{side(name)} is not null and ' for name in names)
        return f'{known}{side(left)} {_WORDS[word]} {side(right)}'

    return text(condition.tree, False)


_OPPOSITES: dict[type, type] = {
    ast.Eq: ast.NotEq, ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.In: ast.NotIn, ast.Is: ast.IsNot,
}  # fmt: skip
_OPPOSITES |= {other: one for one, other in _OPPOSITES.items()}
_WORDS: dict[type, str] = {
    ast.Eq: '==', ast.NotEq: '!=', ast.Lt: '<', ast.LtE: '<=', ast.Gt: '>', ast.GtE: '>=',
    ast.In: 'in', ast.NotIn: 'not in',
}  # fmt: skip


def create(
    uri: str,
    made_by: dict[str, str],
    size: int,
    metric: str = 'cosine',
    kind: str = 'exact',
    own: fields.Own | None = None,
) -> MilvusIndex:
    """Creates an empty collection; see `index.create`.

    Args:
      uri: the value of --index.
      made_by: `fingerprint.made_by` of the classifier.
      size: D, the length of the vectors.
      metric: 'cosine' or 'euclidean'.
      kind: 'exact', 'hnsw' or 'ivfpq'.
      own: user-defined fields.

    Raises:
      UserError: pymilvus is not installed, the server cannot be reached or refuses the request, or
        there is a collection of this name.
    """
    client, name = _connect(uri)
    from pymilvus import DataType, MilvusClient

    usual = fields.table([])
    schema = (own.join(usual) if own else usual).schema
    kinds = {field.name: _type(field.type) for field in schema if field.name != 'path'}
    about = {'made_by': made_by, 'metric': metric, 'kind': kind, 'fields': kinds, 'size': size}
    with _in_a_line():
        there, ours = map(client.has_collection, (name, f'{name}_about'))
        about_it = _about(client, name) if ours else None
        if there and (about_it or not ours):
            raise UserError(
                f'--index={uri}: there is a collection {name}; use `add` or `replace`, or write '
                '#NAME after it for another'
            )
        # Remove the collections of a `build` that was killed in this function, but no others.
        if ours:
            _drop(client, name)
        # Create the collection that describes the index. Its row is inserted at the end. Milvus
        # requires a vector in every collection.
        made = MilvusClient.create_schema()
        made.add_field('id', DataType.INT64, is_primary=True)
        made.add_field('about', DataType.VARCHAR, max_length=65535)
        made.add_field('vector', DataType.FLOAT_VECTOR, dim=2)
        params = MilvusClient.prepare_index_params()
        params.add_index('vector', index_type='FLAT', metric_type='L2')
        client.create_collection(
            f'{name}_about', schema=made, index_params=params, consistency_level='Strong'
        )
        # Create the collection of the images.
        made = MilvusClient.create_schema()
        made.add_field('path', DataType.VARCHAR, is_primary=True, max_length=_LONGEST)
        for field, sort in kinds.items():
            longest = {'max_length': _LONGEST} if sort == 'string' else {}
            made.add_field(field, DataType[_TYPES[sort]], nullable=True, **longest)
        made.add_field('vector', DataType.FLOAT_VECTOR, dim=size)
        # The codes of IVF-PQ have D / 4 bytes, or fewer, because their number must divide D.
        codes = max(m for m in range(1, max(1, size // 4) + 1) if size % m == 0)
        sort, options = {
            'exact': ('FLAT', {}),
            'hnsw': ('HNSW', {'M': 32, 'efConstruction': 200}),
            'ivfpq': ('IVF_PQ', {'nlist': _LISTS, 'm': codes, 'nbits': 8}),
        }[kind]
        params = MilvusClient.prepare_index_params()
        params.add_index('vector', index_type=sort, metric_type=_METRICS[metric], params=options)
        # With strong consistency, a query finds all images added before, also by other clients.
        client.create_collection(name, schema=made, index_params=params, consistency_level='Strong')
        row = {'id': 0, 'about': json_text(about), 'vector': [0.0, 0.0]}
        client.insert(f'{name}_about', [row])
    return MilvusIndex(client, name, about)


def load(uri: str) -> MilvusIndex:
    """Opens a collection.

    Raises:
      UserError: pymilvus is not installed, the server cannot be reached, or there is no such
        collection of this project.
    """
    client, name = _connect(uri)
    with _in_a_line():
        both = all(map(client.has_collection, (name, f'{name}_about')))
        about = _about(client, name) if both else None
        if about is None:
            raise UserError(f'--index={uri}: there is no index {name}; create it with `build`')
        client.load_collection(name)
    try:
        return MilvusIndex(client, name, json.loads(about))
    except (ValueError, LookupError, TypeError):
        raise UserError(f'--index={uri}: {name} is not an index of images') from None


def _about(client: Any, name: str) -> str | None:
    """Returns the JSON that describes an index, or None if the `build` of the index was killed."""
    client.load_collection(f'{name}_about')
    rows = client.query(f'{name}_about', 'id == 0', output_fields=['about'])
    return rows[0]['about'] if rows else None


def _drop(client: Any, name: str) -> None:
    """Removes the collections of an index, and last the one that marks it as ours."""
    for each in (name, f'{name}_about'):
        client.drop_collection(each)


def _type(kind: Any) -> str:
    """Returns the key of `_TYPES` for a type of pyarrow."""
    types = fields.pyarrow().types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_timestamp(kind) or types.is_date(kind):
        return 'date'
    if types.is_integer(kind):
        return 'int64'
    return 'double' if types.is_floating(kind) else 'bool' if types.is_boolean(kind) else 'string'


def _connect(uri: str) -> tuple[Any, str]:
    """Returns the client and the name of the collection."""
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise not_installed('--index=milvus:…', 'pymilvus', 'milvus') from None
    # Silence logs: pymilvus logs errors that it also raises, Milvus Lite unsupported requests.
    for library in ('pymilvus', 'grpc._server'):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    place, _, name = uri.removeprefix(PREFIX).partition('#')
    if '://' not in place and not place.endswith('.db'):
        raise UserError(f'--index={uri}: write milvus:FILE.db or milvus:http://HOST:PORT')
    with _in_a_line():
        return MilvusClient(
            os.path.expanduser(place), token=os.environ.get('MILVUS_TOKEN', '')
        ), name or 'images'


@contextlib.contextmanager
def _in_a_line() -> Iterator[None]:
    """Converts errors of Milvus to UserError."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as e:
        raise UserError(f'Milvus: {" ".join(str(e.message or e).split())[:300]}') from None
