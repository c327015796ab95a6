"""An index of images on disk: a faiss index, and after it in the same file what it is of.

The file begins as faiss writes it, so `faiss.read_index` reads it too; then comes JSON with the
names of the images, what made the vectors and a checksum of what is before it, its length in 8 bytes, and a mark.
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
_HNSW_LINKS, _HNSW_BUILD, _HNSW_SEARCH = 32, 200, 256  # neighbours of a node, beams
_SAMPLE = 1000  # vectors that the recall is measured on
_DIGITS = 6  # of a cosine: float32's
METRICS = ('cosine', 'euclidean')


def faiss() -> Any:
    """The library.

    Raises:
      UserError: it is not installed.
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
    """Vectors of images, searchable.

    Attributes:
      made_by: of the vectors: `fingerprint`'s keys, all strings.
      metric: 'cosine', higher is nearer, or 'euclidean', lower is nearer.
      names: of the images, in the order of the vectors: paths, or 'SPLIT:ID' of the run's data.
      index: faiss's.
      read: the file that it was read from, with its mark then; None of an index that was made here.
    """

    made_by: dict[str, str]
    metric: str
    names: list[str]
    index: Any
    read: tuple[Path, tuple[int, ...]] | None = None

    def add(self, names: Sequence[str], vectors: np.ndarray) -> None:
        """Adds images; vectors are float32 [n, D].

        Raises:
          UserError: vectors of another length, or with values that are not finite: a graph would
            find its other images no more (faiss pull request 5219).
        """
        prepared = self._prepared(vectors)
        if not np.isfinite(prepared).all():
            raise UserError('an index takes no vectors with values that are not finite')
        self.index.add(prepared)
        self.names += names

    def search(self, vectors: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
        """Returns for each of the vectors, float32 [n, D], its ≤ k nearest: (position, score).

        Raises:
          UserError: k is no whole number from 1 on, or the vectors have another length.
        """
        k = min(at_least_one('k', k), max(1, len(self.names)))
        scores, rows = self.index.search(self._prepared(vectors), k)
        scores = scores.astype(np.float64)
        if self.metric == 'euclidean':
            scores = np.sqrt(np.maximum(scores, 0))
        else:  # a vector and itself are 1, not 1.0000001 as sums in float32 have it
            scores = np.clip(np.round(scores, _DIGITS), -1, 1)
        return [
            [(int(i), float(s)) for i, s in zip(*pair, strict=True) if i >= 0]
            for pair in zip(rows, scores, strict=True)
        ]

    def vectors(self) -> np.ndarray:
        """All vectors, float32 [N, D], as they are in the index."""
        return self.index.reconstruct_n(0, len(self.names))

    @property
    def approximate(self) -> bool:
        """True if it is an HNSW graph, and not exact."""
        return hasattr(self.index, 'hnsw')

    def recall(self, k: int = 10) -> float:
        """The fraction of the exact k nearest that an approximate index finds, by its own images."""
        rng = np.random.default_rng(0)
        count = min(_SAMPLE, len(self.names))
        chosen = np.sort(rng.choice(len(self.names), count, replace=False))
        queries = np.stack([self.index.reconstruct(int(i)) for i in chosen])
        k = min(k, len(self.names))
        found, _ = self.index.search(queries, k)
        exact, _ = faiss().downcast_index(self.index.storage).search(queries, k)
        # By scores: of images that are the same, any will do.
        sign = 1 if self.metric == 'cosine' else -1
        return float(np.mean(sign * found >= sign * exact[:, -1:] - 1e-5 * np.abs(exact[:, -1:])))

    def check(self, classifier: Classifier, endpoint: str | None = None) -> None:
        """Raises UserError unless the classifier makes vectors as those that are in here.

        Args:
          classifier: any.
          endpoint: of the model, if not the index's own.
        """
        here = fingerprint(classifier, endpoint or self.made_by['endpoint'])
        for key, value in here.items():
            if self.made_by[key] != value:
                there, ours = _difference(key, self.made_by, here)
                raise UserError(
                    f'the index was made by another {key}: {there} there, {ours} here; build it again, or '
                    'take the run that made it'
                )

    def save(self, path: AnyPath) -> None:
        """Writes the file whole or not at all.

        Raises:
          UserError: it cannot be written, or another process has written it since it was read, whose
            images would be lost.
        """
        about = {'made_by': self.made_by, 'metric': self.metric, 'names': self.names}
        path, checksum = as_path(path), 0
        if self.read and self.read[0] == path and _mark_of(path) not in (None, self.read[1]):
            raise UserError(
                f'--index={path} was written by another process meanwhile; start the same command again'
            )
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
            self.read = path, _mark_of(path) or ()
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
    """Divides vectors [N, D] by their lengths; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def create(made_by: dict[str, str], size: int, metric: str = 'cosine', hnsw: bool = False) -> Index:
    """An empty index.

    Args:
      made_by: what makes the vectors.
      size: D.
      metric: 'cosine' or 'euclidean'.
      hnsw: approximate, by Malkov and Yashunin's graphs (2016): for 100,000 images and more.

    Raises:
      UserError: an unknown metric.
    """
    if metric not in METRICS:
        raise unknown('metric', metric, METRICS)
    kind = faiss().METRIC_INNER_PRODUCT if metric == 'cosine' else faiss().METRIC_L2
    if not hnsw:
        return Index(made_by, metric, [], faiss().IndexFlat(size, kind))
    graph = faiss().IndexHNSWFlat(size, _HNSW_LINKS, kind)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = _HNSW_BUILD, _HNSW_SEARCH
    return Index(made_by, metric, [], graph)


def check_replaceable(path: AnyPath) -> None:
    """Raises UserError if there is a file that is no index: nobody means to overwrite that."""
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
        raise UserError(f'--index={path} is there, and is no index; take another name')


def load(path: AnyPath) -> Index:
    """Reads an index.

    Raises:
      UserError: there is no such file, or it is none of ours.
    """
    faiss()
    path = as_path(path)
    try:
        with open(path, 'rb') as file:
            mark = _mark_of(file.fileno())
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
            # Before faiss, which reserves whatever memory a damaged count asks for.
            if 'crc32' in about and about['crc32'] != _checksum(file, end - length):
                raise ValueError('it has other bytes than were written')
            file.seek(0)
            index = faiss().read_index(faiss().PyCallbackIOReader(file.read))
        if index.ntotal != len(about['names']):
            raise ValueError(f'{index.ntotal} vectors of {len(about["names"])} images')
    except OSError as e:
        raise UserError(f'--index={path}: {e.strerror}; make it with build') from None
    except (ValueError, RuntimeError, LookupError, TypeError, MemoryError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[-1]
        raise UserError(f'--index={path} is no index of images, or damaged ({reason})') from None
    return Index(about['made_by'], about['metric'], about['names'], index, (path, mark or ()))


def _mark_of(path: Path | int) -> tuple[int, ...] | None:
    """A mark that changes when a file is written anew; None if there is none."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _checksum(file: BinaryIO, size: int) -> int:
    """The CRC-32 of the first `size` bytes of a file."""
    file.seek(0)
    checksum = 0
    while size and (data := file.read(min(size, 1 << 24))):
        checksum, size = zlib.crc32(data, checksum), size - len(data)
    return checksum


def fingerprint(classifier: Classifier, endpoint: str) -> dict[str, str]:
    """The model, weights, preprocessing and endpoint that decide a classifier's vectors."""
    run = classifier.run
    config = run.config
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
    """In what two fingerprints differ at a key, in a few words each."""
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
    names = [name for name in first | second if first.get(name) != second.get(name)]
    texts = (
        [f'{name}={model[name]}' if name in model else f'no {name}' for name in names]
        for model in (first, second)
    )
    one, other = (' '.join([first.get('name', 'a model'), *words]) for words in texts)
    return one, other


def _read_model(made_by: dict[str, str]) -> dict[str, str]:
    """The model's name and arguments in a fingerprint, of whatever version."""
    try:
        model = json.loads(made_by['model'])
    except ValueError:
        return {'name': made_by['model']}
    return model if isinstance(model, dict) else {'name': str(model)}


def _parts(preprocessing: str) -> list[str]:
    """The parts of preprocessing in a fingerprint, by their names."""
    try:
        values = json.loads(preprocessing)
    except ValueError:
        return [preprocessing]
    names = ('ops', 'mean', 'std', 'image size', 'input size')
    texts = (', '.join(map(str, v)) if isinstance(v, list) else v for v in values)
    return [f'{name} {text}' for name, text in zip(names, texts, strict=False)]
