"""Index of image vectors in one file: a faiss index followed by the names of the images.

The file starts with the faiss index, which `faiss.read_index` can read. Then follow JSON with the
images' names, the fingerprint of the classifier and a checksum of the faiss part; the length of the
JSON in 8 bytes; and a marker.
"""

import dataclasses
import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vision.core.errors import UserError, at_least_one, unknown
from vision.core.text import AnyPath, as_path, json_text
from vision.prediction.classifier import Classifier

_MARK = b'\nVISION-INDEX-1\n'
# HNSW's M, efConstruction and efSearch: links of a node, and beam widths of build and search.
_HNSW_LINKS, _HNSW_BUILD, _HNSW_SEARCH = 32, 200, 256
_SAMPLE = 1000  # vectors that the recall is measured on
_DIGITS = 6  # decimal places of a cosine, as many as float32 has
METRICS = ('cosine', 'euclidean')


def faiss() -> Any:
    """Imports and returns faiss.

    Raises:
      UserError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise UserError(
            'search needs faiss: pip install "jax-image-classification[search]"'
        ) from None
    return faiss


@dataclasses.dataclass
class Index:
    """A searchable index of image vectors.

    Attributes:
      made_by: the `fingerprint` of the classifier that computed the vectors.
      metric: 'cosine' (higher is nearer) or 'euclidean' (lower is nearer).
      names: the images' names in the order of the vectors: paths, or 'SPLIT:ID' of the run's data.
      index: the faiss index.
      read: the file that the index was loaded from and the file's version at that time, or None.
    """

    made_by: dict[str, str]
    metric: str
    names: list[str]
    index: Any
    read: tuple[Path, tuple[int, ...]] | None = None

    def add(self, names: Sequence[str], vectors: np.ndarray) -> None:
        """Adds images with their vectors, float32 [n, D].

        Raises:
          UserError: the vectors have another length, or values that are not finite.
        """
        prepared = self._prepared(vectors)
        # One NaN makes the other images of an HNSW graph unreachable (faiss pull request 5219).
        if not np.isfinite(prepared).all():
            raise UserError('vectors with values that are not finite cannot be added to an index')
        self.index.add(prepared)
        self.names += names

    def search(self, vectors: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
        """Returns up to k nearest images of each vector, as (position, score), nearest first.

        Args:
          vectors: float32 [n, D].
          k: the number of neighbours.

        Raises:
          UserError: k is not an integer of at least 1, or the vectors have another length.
        """
        k = min(at_least_one('k', k), max(1, len(self.names)))
        scores, rows = self.index.search(self._prepared(vectors), k)
        scores = scores.astype(np.float64)
        if self.metric == 'euclidean':
            scores = np.sqrt(np.maximum(scores, 0))  # faiss returns squared distances
        else:
            # Round off errors of float32: a vector's cosine with itself is 1, not 1.0000001.
            scores = np.clip(np.round(scores, _DIGITS), -1, 1)
        return [
            [(int(i), float(s)) for i, s in zip(*pair, strict=True) if i >= 0]
            for pair in zip(rows, scores, strict=True)
        ]

    def vectors(self) -> np.ndarray:
        """Returns the stored vectors, float32 [N, D]; for cosine they have unit length."""
        return self.index.reconstruct_n(0, len(self.names))

    @property
    def approximate(self) -> bool:
        """True if the index is an HNSW graph, whose search is approximate."""
        return hasattr(self.index, 'hnsw')

    def recall(self, k: int = 10) -> float:
        """Returns the fraction of the exact k nearest neighbours that an HNSW index finds.

        The queries are a sample of the index's own images.
        """
        # The graph stores its vectors in a flat index, whose search is exact.
        rng = np.random.default_rng(0)
        count = min(_SAMPLE, len(self.names))
        chosen = np.sort(rng.choice(len(self.names), count, replace=False))
        queries = np.stack([self.index.reconstruct(int(i)) for i in chosen])
        k = min(k, len(self.names))
        found, _ = self.index.search(queries, k)
        exact, _ = faiss().downcast_index(self.index.storage).search(queries, k)
        # Compare scores instead of positions: images with equal vectors are interchangeable.
        sign = 1 if self.metric == 'cosine' else -1
        return float(np.mean(sign * found >= sign * exact[:, -1:] - 1e-5 * np.abs(exact[:, -1:])))

    def check(self, classifier: Classifier, endpoint: str | None = None) -> None:
        """Raises UserError unless the classifier made the vectors of this index.

        Args:
          classifier: the classifier to compare.
          endpoint: the endpoint in use; by default that of the index.
        """
        here = fingerprint(classifier, endpoint or self.made_by['endpoint'])
        for key, value in here.items():
            if self.made_by[key] != value:
                in_index, in_run = _difference(key, self.made_by, here)
                raise UserError(
                    f'the index and the run differ in their {key}: {in_index} in the index, '
                    f'{in_run} in the run; build the index again, or use the run that made it'
                )

    def save(self, path: AnyPath) -> None:
        """Writes the index file atomically.

        Raises:
          UserError: the file cannot be written, or another process has written it since this index
            was loaded from it.
        """
        about = {'made_by': self.made_by, 'metric': self.metric, 'names': self.names}
        path, checksum = as_path(path), 0
        # Do not overwrite images that another process has added since this index was loaded.
        if self.read and self.read[0] == path and _version(path) not in (None, self.read[1]):
            raise UserError(
                f'--index={path} was changed by another process in the meantime; '
                'run the same command again'
            )
        # Write to a temporary file, flush it to the disk, and rename it.
        temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        try:
            with open(temporary, 'wb') as file:

                def write(data: bytes) -> int:
                    nonlocal checksum
                    checksum = zlib.crc32(data, checksum)
                    return file.write(data)

                faiss().write_index(self.index, faiss().PyCallbackIOWriter(write))
                data = json_text(about | {'crc32': checksum}).encode()
                file.write(data + struct.pack('<Q', len(data)) + _MARK)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            self.read = path, _version(path) or ()
        except OSError as e:
            raise UserError(f'--index={path}: {e.strerror}') from None
        finally:
            temporary.unlink(missing_ok=True)

    def _prepared(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.shape[1:] != (self.index.d,):
            raise UserError(f'vectors of {list(vectors.shape)}; the index has [n, {self.index.d}]')
        return unit(vectors) if self.metric == 'cosine' else vectors


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalises vectors [N, D] to unit length; vectors of zeros stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def create(made_by: dict[str, str], size: int, metric: str = 'cosine', hnsw: bool = False) -> Index:
    """Creates an empty index.

    Args:
      made_by: the classifier's `fingerprint`.
      size: D, the length of the vectors.
      metric: 'cosine' or 'euclidean'.
      hnsw: use an approximate index (Malkov and Yashunin 2016, "Efficient and robust approximate
        nearest neighbor search using hierarchical navigable small world graphs"). It pays off from
        about 100,000 images.

    Raises:
      UserError: the metric is unknown.
    """
    if metric not in METRICS:
        raise unknown('metric', metric, METRICS)
    kind = faiss().METRIC_INNER_PRODUCT if metric == 'cosine' else faiss().METRIC_L2
    if not hnsw:
        return Index(made_by, metric, [], faiss().IndexFlat(size, kind))
    # A graph of neighbours, with the beam widths of building and searching.
    graph = faiss().IndexHNSWFlat(size, _HNSW_LINKS, kind)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = _HNSW_BUILD, _HNSW_SEARCH
    return Index(made_by, metric, [], graph)


def check_replaceable(path: AnyPath) -> None:
    """Raises UserError if a file that is not an index would be overwritten."""
    path = as_path(path)
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, path.stat().st_size - len(_MARK)))
            ours = file.read() == _MARK
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(f'--index={path} exists and is not an index; choose another name')


def load(path: AnyPath) -> Index:
    """Loads an index from a file.

    Raises:
      UserError: the file does not exist, is not an index of this project, or is damaged.
    """
    faiss()
    path = as_path(path)
    try:
        with open(path, 'rb') as file:
            # Read the marker and the JSON at the end of the file.
            version = _version(file.fileno())
            tail = len(_MARK) + 8
            file.seek(0, os.SEEK_END)
            end = file.tell() - tail
            file.seek(max(end, 0))
            trailer = file.read()
            if trailer[8:] != _MARK:
                raise ValueError('it has no list of images')
            (length,) = struct.unpack('<Q', trailer[:8])
            if length > end:
                raise ValueError('it is cut off')
            file.seek(end - length)
            about = json.loads(file.read(length))
            # Check the bytes before faiss reads them: a damaged count would make it allocate
            # any amount of memory.
            if 'crc32' in about and about['crc32'] != _checksum(file, end - length):
                raise ValueError('its checksum does not match')
            file.seek(0)
            index = faiss().read_index(faiss().PyCallbackIOReader(file.read))
        if index.ntotal != len(about['names']):
            raise ValueError(f'{index.ntotal} vectors for {len(about["names"])} images')
    except OSError as e:
        raise UserError(f'--index={path}: {e.strerror}; create it with `build`') from None
    except (ValueError, RuntimeError, LookupError, TypeError, MemoryError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[-1]
        raise UserError(
            f'--index={path} is not an index of images, or is damaged ({reason})'
        ) from None
    return Index(about['made_by'], about['metric'], about['names'], index, (path, version or ()))


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


def fingerprint(classifier: Classifier, endpoint: str) -> dict[str, str]:
    """Returns everything that determines a classifier's vectors, for `Index.check`."""
    run = classifier.run
    config = run.config
    # Sorted strings, because configs of the same run may order or type their values differently.
    model = {k: str(v) for k, v in sorted(config.model.to_dict().items())}
    preprocess = [
        config.preprocess.eval,
        *map(list, (config.preprocess.mean, config.preprocess.std)),
    ]
    return {
        'model': json_text(model),
        'preprocessing': json_text([*preprocess, run.image_shape, run.input_shape]),
        'endpoint': endpoint,
        'weights': classifier.digest,
    }


def _difference(key: str, there: dict[str, str], here: dict[str, str]) -> tuple[str, str]:
    """Describes the difference between two fingerprints at a key: (there, here)."""
    if key == 'weights':
        model = _read_model(here)['name']
        return f'{model} with weights {there[key]}', f'{model} with weights {here[key]}'
    if key == 'preprocessing':
        pairs = zip(*(_parts(made[key]) for made in (there, here)), strict=False)
        return next((pair for pair in pairs if pair[0] != pair[1]), (there[key], here[key]))
    if key != 'model':
        return there[key], here[key]
    first, second = _read_model(there), _read_model(here)
    if first.get('name') != second.get('name'):
        return first.get('name', 'a model'), second.get('name', 'a model')
    # The same model with other arguments: name those that differ.
    names = [name for name in first | second if first.get(name) != second.get(name)]
    texts = (
        [f'{name}={model[name]}' if name in model else f'no {name}' for name in names]
        for model in (first, second)
    )
    one, other = (' '.join([first.get('name', 'a model'), *words]) for words in texts)
    return one, other


def _read_model(made_by: dict[str, str]) -> dict[str, str]:
    """Returns the model's name and arguments from a fingerprint; old ones have only the name."""
    try:
        model = json.loads(made_by['model'])
    except ValueError:
        return {'name': made_by['model']}
    return model if isinstance(model, dict) else {'name': str(model)}


def _parts(preprocessing: str) -> list[str]:
    """Splits the preprocessing of a fingerprint into its named parts."""
    try:
        values = json.loads(preprocessing)
    except ValueError:
        return [preprocessing]
    names = ('ops', 'mean', 'std', 'image size', 'input size')
    texts = (', '.join(map(str, v)) if isinstance(v, list) else v for v in values)
    return [f'{name} {text}' for name, text in zip(names, texts, strict=False)]
