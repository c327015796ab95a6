"""Folders of Parquet shards, which hold the descriptions of a collection of images.

    DIR/manifest.json        fingerprint of the model, length of a vector, number of shards
    DIR/shard-00000.parquet  one row per image, see `schema`

The CRC-32 of an image's path determines its shard. `describing.describe` writes the shards.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision.core import workdir
from vision.core.errors import UserError
from vision.core.text import AnyPath, as_path, json_text
from vision.prediction.classifier import Classifier
from vision.search import fingerprint
from vision.search.descriptions import Described
from vision.search.fields import pyarrow, utf8

_MADE_BY = ('model', 'preprocessing', 'endpoint', 'weights')  # keys of `fingerprint.made_by`
FORMAT = 1  # version of the manifest and the columns
_NO_UTF8 = 'its name is not valid UTF-8; rename it'
_TOO_LARGE = "the model's features exceed the range of float16"
_TOO_SMALL = "the model's features are all zero in float16"


class Manifest(NamedTuple):
    """Properties that all shards of a folder share.

    Attributes:
      folder: the folder.
      made_by: `fingerprint.made_by` of the classifier.
      size: D, the length of a vector.
      shards: the number of shards.
    """

    folder: Path
    made_by: dict[str, str]
    size: int
    shards: int

    def shard(self, number: int) -> Path:
        """Returns the path of a shard."""
        return self.folder / f'shard-{number:05}.parquet'


def schema(size: int) -> Any:
    """Returns the columns of a shard, as a `pyarrow.Schema`.

    `path`; `class`, `size`, `date`, `width`, `height`, `sha256` and `phash` as in `Described`;
    `error`, the reason why there is no vector; `gone`, true if the file no longer exists; `vector`,
    D float16 values as little-endian bytes, which every engine can read.
    """
    pa = pyarrow()
    kinds = {
        'path': pa.string(),
        'class': pa.string(),
        'size': pa.int64(),
        'date': pa.timestamp('us', 'UTC'),
        'width': pa.int32(),
        'height': pa.int32(),
        'sha256': pa.binary(32),
        'phash': pa.string(),
        'error': pa.string(),
        'gone': pa.bool_(),
        'vector': pa.binary(2 * size),
    }
    return pa.schema(list(kinds.items()))


def open_shards(
    folder: AnyPath, classifier: Classifier | None = None, endpoint: str | None = None
) -> Manifest:
    """Opens a folder of shards.

    Args:
      folder: the folder.
      classifier: the classifier that must have described the images; None for any.
      endpoint: the endpoint that must describe them; None for any.

    Raises:
      UserError: the folder has no manifest or one of another version, shards are missing, or
        another classifier or endpoint describes the images.
    """
    folder = as_path(folder)
    manifest = read_manifest(folder)
    was, way = manifest.made_by, 'describe into another folder'
    if classifier is not None:
        fingerprint.check(was, classifier, endpoint, str(folder), way)
    elif endpoint not in (None, was['endpoint']):
        raise UserError(
            f'--endpoint={endpoint}: {folder} has the endpoint {was["endpoint"]}; {way}'
        )
    there = sum(manifest.shard(i).is_file() for i in range(manifest.shards))
    if there < manifest.shards:
        raise UserError(
            f'{folder} is not complete: {manifest.shards - there} of {manifest.shards} shards are '
            'missing; start `describe` again, which does the rest'
        )
    return manifest


def is_shards(folder: Path) -> bool:
    """True if a folder has a manifest of shards."""
    return (folder / 'manifest.json').is_file()


def read_shards(manifest: Manifest) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields the table and the vectors, float32 [n, D], of each shard.

    Images that are gone are left out. The vectors of images with an `error` are zero.
    """
    pc = pyarrow().compute
    for number in range(manifest.shards):
        try:
            table = read_shard(manifest, number)
        except FileNotFoundError:
            raise UserError(
                f'{manifest.shard(number)} is missing; start `describe` again'
            ) from None
        table = table.filter(pc.invert(table['gone']))
        data = b''.join(table['vector'].fill_null(bytes(2 * manifest.size)).to_pylist())
        vectors = np.frombuffer(data, '<f2').reshape(-1, manifest.size)
        yield table.drop_columns(['vector', 'gone']), vectors.astype(np.float32)


def count(manifest: Manifest) -> dict[str, int]:
    """Counts the existing `images`, those that could not be read (`failed`), and those `gone`."""
    found = dict.fromkeys(('images', 'gone', 'failed'), 0)
    for number in range(manifest.shards):
        table = read_shard(manifest, number, ['gone', 'error'])
        gone = np.asarray(table['gone'])
        found['images'] += int((~gone).sum())
        found['gone'] += int(gone.sum())
        found['failed'] += int((np.asarray(table['error'].is_valid()) & ~gone).sum())
    return found


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder; raises UserError if it has none, or a damaged one."""
    path = folder / 'manifest.json'
    try:
        about = json.loads(path.read_text('utf-8'))
        if about['format'] != FORMAT:
            raise UserError(f'{path} has another format; describe into a new folder')
        manifest = Manifest(folder, dict(about['made_by']), about['dimensions'], about['shards'])
        whole = all(isinstance(n, int) and n > 0 for n in (manifest.size, manifest.shards))
        if not whole or not all(isinstance(manifest.made_by[key], str) for key in _MADE_BY):
            raise ValueError
        return manifest
    except OSError as e:
        raise UserError(
            f'{path}: {e.strerror}; name a folder that `describe` has written'
        ) from None
    except (ValueError, LookupError, TypeError):
        raise UserError(f'{path} is damaged; describe into a new folder') from None


def read_shard(manifest: Manifest, number: int, columns: list[str] | None = None) -> Any:
    """Reads a shard, or some of its columns.

    Raises:
      FileNotFoundError: the shard does not exist.
      UserError: the shard is damaged, or belongs to another model.
    """
    pa = pyarrow()
    from pyarrow import parquet

    path = manifest.shard(number)
    try:
        with open(path, 'rb') as file:
            # If columns are given, read only their parts of the file.
            source = file if columns else io.BytesIO(file.read())
            shard = parquet.ParquetFile(source, page_checksum_verification=True)
            table = shard.read(columns=columns)
        made_by = (table.schema.metadata or {}).get(b'made_by', b'').decode()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as e:
        raise UserError(f'{path} is damaged ({f"{e}".partition(chr(10))[0]})') from None
    if made_by != json_text(manifest.made_by):
        raise UserError(f'{path} was written with another model than {manifest.folder}')
    every = schema(manifest.size)
    if not table.schema.equals(pa.schema([every.field(n) for n in columns or every.names])):
        raise UserError(f'{path} is damaged (its columns are not those of a shard)')
    return table


def table_of(about: list[Described], vectors: np.ndarray) -> Any:
    """Returns the rows of a shard."""
    pa, rows = pyarrow(), []
    with np.errstate(over='ignore'):
        halves = vectors.astype('<f2')
    for known, vector, half in zip(about, vectors, halves, strict=True):
        row = known._asdict()
        row['class'], row['date'] = utf8(row.pop('label')) or None, row.pop('modified')
        if row['error'] is None and not np.isfinite(half).all():
            row['error'] = _TOO_LARGE
        if row['error'] is None and vector.any() and not half.any():
            row['error'] = _TOO_SMALL
        if row['error'] is None and utf8(known.path) != known.path:
            row['error'] = _NO_UTF8
        row['path'], row['gone'] = utf8(known.path), False
        row['vector'] = None if row['error'] else half.tobytes()
        rows.append(row)
    return pa.Table.from_pylist(rows, schema(vectors.shape[1]))


def to_parquet(table: Any) -> bytes:
    """Returns the bytes of a shard's file."""
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(
        table,
        file,
        use_dictionary=['class', 'error'],
        store_schema=True,
        write_page_checksum=True,
    )
    return file.getvalue()


def write(path: Path, data: bytes) -> None:
    """Writes a file atomically; raises UserError if the disk is full."""
    try:
        workdir.write_bytes(path, data)
    except OSError as e:
        path.with_name(path.name + '.tmp').unlink(missing_ok=True)
        raise UserError(
            f'{path}: {e.strerror}; what was written before is whole, start the same command again'
        ) from None
