"""Index of image vectors in one file: a faiss index followed by a table of the images.

The file has these parts: the faiss index, which `faiss.read_index` can read; the table of names and
fields (an Arrow IPC file); the whitening of the vectors, if there is one; JSON with the fingerprint
of the classifier, the positions of the table and the whitening, and a checksum of the bytes before
the JSON; the length of the JSON in 8 bytes; and a marker. Files of version 1 have the names in the
JSON.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vision.core.errors import UserError, at_least_one, not_installed, unknown
from vision.core.text import AnyPath, as_path, json_text
from vision.prediction.classifier import Classifier
from vision.search import fields, fingerprint
from vision.search.descriptors import Whitening
from vision.search.descriptors import unit as unit

_MARKS = (b'\nVISION-INDEX-1\n', b'\nVISION-INDEX-2\n')  # by version; the last one is written
# HNSW's M, efConstruction and efSearch: links per node, and the beam widths of build and search.
_HNSW_LINKS, _HNSW_BUILD, _HNSW_SEARCH = 32, 200, 256
# IVF-PQ has `_LISTS` · √N lists for N images, trained on `_PER_LIST` images each. A query searches
# one in `_PROBED` lists. One byte encodes `_PER_BYTE` values of a vector; `_CODES` images train the
# codes. `_LEAST` is the smallest number of images.
_LISTS, _PER_LIST, _PROBED, _PER_BYTE, _CODES, _LEAST = 4, 64, 64, 4, 65536, 1000
_SAMPLE = 1000  # number of vectors on which the recall is measured
_NONE = None, np.empty(0)  # no condition, and no images
_DIGITS = 6  # decimal places of a cosine, as many as float32 has
_ALIGN = 64  # bytes; the table starts at a multiple of this, so that it can be mapped
METRICS = ('cosine', 'euclidean')
KINDS = ('exact', 'hnsw', 'ivfpq')


def faiss() -> Any:
    """Imports and returns faiss.

    Raises:
      UserError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise not_installed('search', 'faiss', 'search') from None
    return faiss


@dataclasses.dataclass
class Index:
    """A searchable index of image vectors.

    Attributes:
      made_by: `fingerprint.made_by` of the classifier that computed the vectors.
      metric: 'cosine' (higher is nearer) or 'euclidean' (lower is nearer).
      table: the images in the order of the vectors, see `fields.table`.
      index: the faiss index.
      read: the file that the index was loaded from and the file's version at that time, or None.
      whitening: applied to the vectors that are added and searched for; None for none. Stored
        vectors are whitened.
    """

    made_by: dict[str, str]
    metric: str
    table: Any
    index: Any
    read: tuple[Path, tuple[int, ...]] | None = None
    whitening: Whitening | None = None
    _chosen: tuple[str | None, np.ndarray] = _NONE

    def __len__(self) -> int:
        return len(self.table)

    @property
    def names(self) -> list[str]:
        """The images' names in the order of the vectors: paths, or 'SPLIT:ID' of the run's data."""
        return fields.names(self.table)

    def name(self, position: int) -> str:
        """Returns the name of one image."""
        return os.fsdecode(self.table['path'][position].as_py())

    @property
    def kind(self) -> str:
        """The kind of the index: 'exact', 'hnsw' or 'ivfpq'."""
        if hasattr(self.index, 'hnsw'):
            return 'hnsw'
        return 'ivfpq' if hasattr(self.index, 'pq') else 'exact'

    def train(self, vectors: np.ndarray) -> None:
        """Fits the lists and codes of an IVF-PQ index to vectors, float32 [n, D].

        They should be a random sample of `training_size` images. Other kinds need no training.

        Raises:
          UserError: there are too few vectors.
        """
        if not self.index.is_trained:
            if len(vectors) < _LEAST:
                raise UserError(
                    f'--kind=ivfpq needs at least {_LEAST:,} images, {len(vectors):,} could be '
                    'read; use --kind=exact'
                )
            self.index.train(self.prepared(vectors))

    @property
    def training_size(self) -> int:
        """The number of vectors that `train` should get; 0 if the index is trained."""
        return 0 if self.index.is_trained else max(_CODES, _PER_LIST * self.index.nlist)

    def add(self, images: Any, vectors: np.ndarray) -> None:
        """Adds images with their vectors.

        Args:
          images: n names, or a table of n rows (`fields.table`).
          vectors: float32 [n, D].

        Raises:
          UserError: the vectors have another length, or values that are not finite.
        """
        prepared = self.prepared(vectors)
        # One NaN makes the other images of an HNSW graph unreachable (faiss pull request 5219).
        if not np.isfinite(prepared).all():
            raise UserError('vectors with values that are not finite cannot be added to an index')
        table = images if hasattr(images, 'schema') else fields.table(images)
        if len(prepared):
            joined = fields.join(self.table, table)
            self.index.add(prepared)
            self.table, self._chosen = joined, _NONE

    def check_fields(self, images: Any) -> None:
        """Raises UserError unless the fields of a table of images have the types of the index."""
        fields.join(self.table.slice(0, 0), images)

    def with_own(
        self, batches: Iterable[tuple[Any, np.ndarray]]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Adds to tables of images the fields that only the index has for these images."""
        rows = {name: i for i, name in enumerate(self.names)}
        for table, vectors in batches:
            found = [rows.get(name) for name in fields.names(table)]
            other = [name for name in self.table.column_names if name not in table.column_names]
            picked = self.table.select(other).take(fields.pyarrow().array(found, 'int64'))
            for name in other:
                table = table.append_column(name, picked[name])
            yield table, vectors

    def remove(self, names: Collection[str]) -> int:
        """Removes images by their names; returns the number of removed images.

        The graph of an HNSW index is rebuilt from the remaining images.
        """
        names = {*names}
        keep = np.array([name not in names for name in self.names], bool)
        gone = np.flatnonzero(~keep)
        if not len(gone):
            return 0
        if self.kind == 'hnsw':
            rest = self.vectors()[keep]
            self.index.reset()
            self.index.add(rest)
        else:
            self.index.remove_ids(faiss().IDSelectorBatch(gone))
        # Renumber the remaining images of an IVF index, which faiss does not do.
        if self.kind == 'ivfpq':
            lists, numbers = self.index.invlists, np.cumsum(keep) - 1
            for i in range(self.index.nlist):
                if size := lists.list_size(i):
                    ids = faiss().rev_swig_ptr(lists.get_ids(i), size)
                    ids[:] = numbers[ids]
        self.table, self._chosen = self.table.take(np.flatnonzero(keep)), _NONE
        return len(gone)

    def search(
        self, vectors: np.ndarray, k: int, chosen: np.ndarray | None = None
    ) -> list[list[tuple[int, float]]]:
        """Returns up to k nearest images of each vector, as (position, score), nearest first.

        Args:
          vectors: float32 [n, D].
          k: the number of neighbours.
          chosen: bool [N], the images to search, see `choose`; all by default. All of them are
            compared with the vector, even in an approximate index, because an approximate search
            could miss a few chosen images among many others.

        Raises:
          UserError: k is not an integer of at least 1, or the vectors have another length.
        """
        k = min(at_least_one('k', k), max(1, len(self.table)))
        prepared = self.prepared(vectors)
        if chosen is None:
            scores, rows = self.index.search(prepared, k)
        else:
            bits = np.packbits(chosen, bitorder='little')
            options = {'sel': faiss().IDSelectorBitmap(bits)}
            if self.kind == 'ivfpq':
                options = faiss().SearchParametersIVF(**options, nprobe=self.index.nlist)
            else:
                options = faiss().SearchParameters(**options)
            scores, rows = self._exhaustive.search(prepared, k, params=options)
        scores = scores.astype(np.float64)
        if self.metric == 'euclidean':
            scores = np.sqrt(np.maximum(scores, 0))  # faiss returns squared distances
        else:
            # Remove rounding errors of float32: a vector's cosine with itself is 1, not 1.0000001.
            scores = np.clip(np.round(scores, _DIGITS), -1, 1)
        return [
            [(i, s) for i, s in zip(*pair, strict=True) if i >= 0]
            for pair in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def nearest(
        self, vectors: np.ndarray, k: int, where: str | None = None
    ) -> list[list[tuple[str, float]]]:
        """Returns up to k nearest images of each vector, as (name, score), nearest first.

        Args:
          vectors: float32 [n, D].
          k: the number of neighbours.
          where: a condition that the images fulfil, see `fields.choose`.

        Raises:
          UserError: as for `search`, or the condition is not valid.
        """
        found = self.search(vectors, k, self.choose(where) if where else None)
        return [[(self.name(i), score) for i, score in row] for row in found]

    def choose(self, where: str) -> np.ndarray:
        """Returns the images that fulfil a condition, bool [N]; see `fields.choose`."""
        # Keep the result, since many queries have the same condition. The pair is read and replaced
        # as a whole, because another thread may store the images of its condition.
        known = self._chosen
        if known[0] != where:
            known = self._chosen = where, fields.choose(self.table, where)
        return known[1]

    def vectors(self) -> np.ndarray:
        """Returns the stored vectors, float32 [N, D]; for cosine they have unit length.

        Those of an IVF-PQ index are approximate.
        """
        return self.index.reconstruct_n(0, len(self.table))

    @property
    def approximate(self) -> bool:
        """True if the search is approximate."""
        return self.kind != 'exact'

    @property
    def _exhaustive(self) -> Any:
        """The faiss index that compares every stored vector."""
        return faiss().downcast_index(self.index.storage) if self.kind == 'hnsw' else self.index

    def recall(self, k: int = 10) -> float | None:
        """Returns the fraction of the exact k nearest neighbours that an HNSW index finds.

        The queries are a sample of the index's own images. None for an IVF-PQ index, which does not
        keep the exact vectors.
        """
        if self.kind == 'ivfpq':
            return None
        # The graph stores its vectors in a flat index, whose search is exact.
        rng = np.random.default_rng(0)
        count = min(_SAMPLE, len(self.table))
        chosen = np.sort(rng.choice(len(self.table), count, replace=False))
        queries = np.stack([self.index.reconstruct(int(i)) for i in chosen])
        k = min(k, len(self.table))
        found, _ = self.index.search(queries, k)
        exact, _ = self._exhaustive.search(queries, k)
        # Compare scores instead of positions: images with equal vectors are interchangeable.
        sign = 1 if self.metric == 'cosine' else -1
        return float(np.mean(sign * found >= sign * exact[:, -1:] - 1e-5 * np.abs(exact[:, -1:])))

    def check(self, classifier: Classifier, endpoint: str | None = None) -> None:
        """Raises UserError unless the classifier made the vectors of this index.

        Args:
          classifier: the classifier to compare.
          endpoint: the endpoint in use; by default that of the index.
        """
        fingerprint.check(self.made_by, classifier, endpoint)

    def save(self, path: AnyPath) -> None:
        """Writes the index file atomically; processes that have opened the old file can read on.

        Raises:
          UserError: the file cannot be written, or another process has written it since this index
            was loaded from it.
        """
        path, checksum = as_path(path), 0
        self._check_version(path)
        # Write to a temporary file, flush it to the disk, and rename it.
        temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        try:
            with open(temporary, 'wb') as file:

                def write(data: bytes) -> int:
                    nonlocal checksum
                    checksum = zlib.crc32(data, checksum)
                    return file.write(data)

                faiss().write_index(self.index, faiss().PyCallbackIOWriter(write))
                write(bytes(-file.tell() % _ALIGN))
                start, table = file.tell(), fields.to_bytes(self.table)
                write(table)
                about = {'made_by': self.made_by, 'metric': self.metric}
                place: dict[str, Any] = {'table': [start, len(table)]}
                if self.whitening is not None:
                    place['whitening'] = [file.tell(), write(self.whitening.to_bytes())]
                place['crc32'] = checksum
                data = json_text({**about, **place}).encode()
                file.write(data + struct.pack('<Q', len(data)) + _MARKS[-1])
                file.flush()
                os.fsync(file.fileno())
            # Check again after writing, while the lock keeps other processes from replacing it.
            with _locked(path):
                self._check_version(path)
                os.replace(temporary, path)
                self.read = path, _version(path) or ()
        except OSError as e:
            raise UserError(f'--index={path}: {e.strerror}') from None
        finally:
            temporary.unlink(missing_ok=True)

    def _check_version(self, path: Path) -> None:
        """Raises UserError if another process has written the file since it was loaded."""
        if self.read and self.read[0] == path and _version(path) not in (None, self.read[1]):
            raise UserError(
                f'--index={path} was changed by another process in the meantime; '
                'run the same command again'
            )

    def prepared(self, vectors: np.ndarray) -> np.ndarray:
        """Returns vectors as the index stores them: whitened, for cosine of unit length.

        Raises:
          UserError: they have another length than those that the index was made for.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        size = self.index.d if self.whitening is None else len(self.whitening.mean)
        if vectors.shape[1:] != (size,):
            raise UserError(f'vectors of {list(vectors.shape)}; the index has [n, {size}]')
        if self.whitening is not None:
            vectors = self.whitening(vectors)
        return unit(vectors) if self.metric == 'cosine' else vectors


def create(
    made_by: dict[str, str],
    size: int,
    metric: str = 'cosine',
    kind: str = 'exact',
    count: int = 0,
) -> Index:
    """Creates an empty index.

    Args:
      made_by: `fingerprint.made_by` of the classifier.
      size: D, the length of the vectors.
      metric: 'cosine' or 'euclidean'.
      kind: 'exact'; 'hnsw', a graph of neighbours (Malkov and Yashunin 2016, "Efficient and robust
        approximate nearest neighbor search using hierarchical navigable small world graphs"), which
        pays off from about 100,000 images; or 'ivfpq', lists of codes of about D / 4 bytes (Jégou
        et al. 2011, "Product quantization for nearest neighbor search"), for millions of images.
      count: the number of images that an IVF-PQ index is made for.

    Raises:
      UserError: the metric or kind is unknown, or there are too few images for the kind.
    """
    if metric not in METRICS:
        raise unknown('metric', metric, METRICS)
    if kind not in KINDS:
        raise unknown('kind', kind, KINDS)
    measure = faiss().METRIC_INNER_PRODUCT if metric == 'cosine' else faiss().METRIC_L2
    if kind == 'exact':
        made = faiss().IndexFlat(size, measure)
    elif kind == 'hnsw':
        # A graph of neighbours, with the beam widths of building and searching.
        made = faiss().IndexHNSWFlat(size, _HNSW_LINKS, measure)
        made.hnsw.efConstruction, made.hnsw.efSearch = _HNSW_BUILD, _HNSW_SEARCH
    else:
        if count < _LEAST:
            raise UserError(
                f'--kind=ivfpq needs at least {_LEAST:,} images, there are {count:,}; '
                'use --kind=exact'
            )
        lists = min(round(_LISTS * count**0.5), count // _PER_LIST)
        codes = max(m for m in range(1, max(1, size // _PER_BYTE) + 1) if size % m == 0)
        made = faiss().index_factory(size, f'IVF{lists},PQ{codes}', measure)
        made.nprobe = max(1, lists // _PROBED)
        made.do_polysemous_training = False  # takes most of the time, for a filter that is not used
        made.cp.min_points_per_centroid = made.pq.cp.min_points_per_centroid = 1  # no warnings
    return Index(made_by, metric, fields.table([]), made)


def check_replaceable(path: AnyPath) -> None:
    """Raises UserError if a file that is not an index would be overwritten."""
    path = as_path(path)
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, path.stat().st_size - len(_MARKS[0])))
            ours = file.read() in _MARKS
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(f'--index={path} exists and is not an index; choose another name')


def load(path: AnyPath, read_only: bool = False) -> Index:
    """Loads an index from a file.

    Args:
      path: the file.
      read_only: map the file instead of reading it into memory; nothing can be added or removed.

    Raises:
      UserError: the file does not exist, is not an index of this project, or is damaged.
    """
    faiss()
    path = as_path(path)
    try:
        with open(path, 'rb') as file:
            return _load(path, file, read_only)
    except OSError as e:
        raise UserError(f'--index={path}: {e.strerror}; create it with `build`') from None
    except (ValueError, RuntimeError, LookupError, TypeError, MemoryError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[-1]
        raise UserError(
            f'--index={path} is not an index of images, or is damaged ({reason})'
        ) from None


def _load(path: Path, file: BinaryIO, read_only: bool) -> Index:
    """Loads an index from an open file; the file at `path` may have been replaced since then."""
    # Read the marker and the JSON at the end of the file.
    version = _version(file.fileno())
    tail = len(_MARKS[0]) + 8
    file.seek(0, os.SEEK_END)
    end = file.tell() - tail
    file.seek(max(end, 0))
    trailer = file.read()
    if trailer[8:] not in _MARKS:
        raise ValueError('it has no list of images')
    (length,) = struct.unpack('<Q', trailer[:8])
    if length > end:
        raise ValueError('it is cut off')
    file.seek(end - length)
    about = json.loads(file.read(length))
    # Verify the checksum before faiss reads the bytes: with a damaged count, faiss could allocate
    # any amount of memory.
    if 'crc32' in about and about['crc32'] != _checksum(file, end - length):
        raise ValueError('its checksum does not match')
    # Version 1 has the names in the JSON.
    table = fields.map_file(file, *about['table']) if 'table' in about else None
    table = fields.table(about['names']) if table is None else table
    file.seek(0)
    if read_only:
        # faiss has different flags to map the lists of an IVF index and the vectors of other kinds.
        of_lists = file.read(2) == b'Iw'
        flag = faiss().IO_FLAG_MMAP if of_lists else faiss().IO_FLAG_MMAP_IFC
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # /dev/fd of macOS shares the position
        index = faiss().read_index(f'/dev/fd/{file.fileno()}', flag)
    else:
        index = faiss().read_index(faiss().PyCallbackIOReader(file.read))
    if index.ntotal != len(table):
        raise ValueError(f'{index.ntotal} vectors for {len(table)} images')
    whitening = None
    if 'whitening' in about:
        start, length = about['whitening']
        file.seek(start)
        whitening = Whitening.from_bytes(file.read(length), index.d)
    return Index(about['made_by'], about['metric'], table, index, (path, version or ()), whitening)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock (`flock`) on the current version of a file, if the file system has locks.

    All processes that have loaded this version and want to replace it wait for this lock.
    """
    try:
        # NFS grants exclusive locks only on files that are open for writing.
        file = open(path, 'r+b' if os.access(path, os.W_OK) else 'rb')  # noqa: SIM115
    except FileNotFoundError:
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _version(path: Path | int) -> tuple[int, ...] | None:
    """Returns a file's inode, size and modification time (ns), or None if it does not exist."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _checksum(file: BinaryIO, size: int) -> int:
    """Returns the CRC-32 of the first `size` bytes of a file."""
    file.seek(0)
    checksum = 0
    while size and (data := file.read(min(size, 1 << 24))):
        checksum, size = zlib.crc32(data, checksum), size - len(data)
    return checksum
