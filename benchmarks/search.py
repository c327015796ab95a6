"""Recall, latency and memory of each kind of search index, beside direct use of faiss.

An index may hold millions of vectors, of which a folder of photos gives the first. The others are
drawn from a Gaussian mixture that is fitted to those of the photos. Vectors are drawn in chunks,
so that only the index itself is in memory.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision.search.index import Index, create, load, unit
from vision.search.kinds import KINDS, faiss

_SIZE, _K = 384, 10
_CHUNK = 10_000  # vectors that are drawn at once
_QUERIES = 200  # half of them real, if there are photos
_OF_CLUSTER, _SPREAD = 100, 0.5  # without photos
_OF_COMPONENT = 20  # photos for each component of the mixture
_COMPARED = 20_000_000  # vectors that an exact search compares in a round of one thread


class Mixture(NamedTuple):
    """Gaussians with diagonal covariances, and real vectors from which they are fitted.

    Attributes:
      means: float32 [C, D].
      deviations: float32 [C, D].
      weights: float64 [C].
      real: vectors for the index, float32 [R, D].
      asked: vectors for queries, float32 [Q, D].
    """

    means: np.ndarray
    deviations: np.ndarray
    weights: np.ndarray
    real: np.ndarray
    asked: np.ndarray

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Draws vectors, float32 [count, D]."""
        rng = np.random.default_rng((seed, 1))
        which = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.standard_normal((count, self.means.shape[1]), np.float32)
        return self.means[which] + noise * self.deviations[which]

    def chunks(self, count: int) -> Iterator[np.ndarray]:
        """Yields `count` vectors, the real ones first; they are the same each time."""
        for number, start in enumerate(range(0, count, _CHUNK)):
            drawn = self.draw(min(_CHUNK, count - start), number)
            real = self.real[start : start + len(drawn)]
            drawn[: len(real)] = real
            yield drawn

    def queries(self) -> np.ndarray:
        """Returns the queries: the real ones, then drawn ones."""
        drawn = self.draw(_QUERIES - len(self.asked), 2**31)
        return np.concatenate([self.asked, drawn])


def clusters(count: int) -> Mixture:
    """Returns Gaussians around random centres, one for 100 vectors, without real vectors."""
    centres = np.random.default_rng(0).normal(size=(max(1, count // _OF_CLUSTER), _SIZE))
    none = np.empty((0, _SIZE), np.float32)
    means = centres.astype(np.float32)
    weights = np.full(len(means), 1 / len(means))
    return Mixture(means, np.full_like(means, _SPREAD), weights, none, none)


def fitted(vectors: np.ndarray) -> Mixture:
    """Fits a mixture to real vectors, float32 [n, D].

    They are rotated to their principal components, of which the first 384 are kept. Up to 100 of
    them become queries; the mixture is fitted to the others, which the index holds.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    size = min(_SIZE, vectors.shape[1], len(vectors) - 1)
    mean = vectors.mean(axis=0)
    # The mean is added again, so that cosines stay those of the vectors.
    pca = PCA(size, random_state=0).fit(vectors)
    rows = (pca.transform(vectors) + pca.components_ @ mean).astype(np.float32)
    rows = np.random.default_rng(0).permutation(rows)
    asked, real = np.split(rows, [min(_QUERIES // 2, len(rows) // 4)])
    components = max(1, len(real) // _OF_COMPONENT)
    # The variance of a direction in which a component has none is a hundredth of the average.
    least = float(real.var(axis=0).mean()) / 100
    made = GaussianMixture(components, covariance_type='diag', reg_covar=least, random_state=0)
    made.fit(real)
    deviations = np.sqrt(made.covariances_).astype(np.float32)
    return Mixture(made.means_.astype(np.float32), deviations, made.weights_, real, asked)


def of_photos(photos: str, model: str) -> np.ndarray:
    """Returns the vectors of photos, float32 [n, D]."""
    from vision.prediction.classifier import Classifier
    from vision.search import search

    classifier = Classifier.from_pretrained(model, classify=False)
    return search.build(classifier, search.named(classifier.run, photos))[0].vectors()


def search_speed(
    mixture: Mixture,
    count: int = 100_000,
    kinds: Sequence[str] = KINDS,
    threads: tuple[int, ...] = (1, 2),
    rounds: int = 3,
) -> dict[str, Any]:
    """Searches for the 10 nearest neighbours of new vectors by their cosine, one at a time.

    The peer is the same faiss index, called directly with the same parameters.

    Args:
      mixture: where the vectors come from.
      count: the number of vectors in the index.
      kinds: kinds of indexes.
      threads: numbers of threads of a query.
      rounds: how often each is measured, in turn.

    Returns:
      `vectors`, `real` and `size`, and rows `kinds`: `kind`, `build_seconds`; `build_mb`, the peak
      memory of this process until the index is built; `file_mb`; `open_ms` and `search_mb`, the
      time to open the file and the memory of a process that opens it and answers all queries;
      `threads`, `recall@10`, the milliseconds per query `ms` and `ms_faiss` (medians), and `ratio`,
      faiss' time over ours.
    """
    asked = mixture.queries()
    right, rows = _nearest(mixture, count, asked), []
    # The kinds with the least memory come first, so that the peaks are their own.
    for kind in (k for k in ('ivfpq', 'exact', 'hnsw') if k in kinds):
        index, seconds = _build(mixture, count, kind)
        about = {'kind': kind, 'build_seconds': seconds, 'build_mb': _peak_mb()}
        about |= _in_a_process(index, asked)
        some = asked[: max(10, _COMPARED // count)] if kind == 'exact' else asked
        for number in threads:
            faiss().omp_set_num_threads(number)
            times = []
            for _ in range(rounds):
                found, ours = _ours(index, some)
                times.append((ours, _by_hand(index, some)))
            ours, hand = map(statistics.median, zip(*times, strict=True))
            hits = [len(a & b) / len(a) for a, b in zip(right, found, strict=False)]
            figures = {'threads': number, 'recall@10': float(np.mean(hits))}
            rows.append({**about, **figures, 'ms': ours, 'ms_faiss': hand, 'ratio': hand / ours})
        del index
    real = min(count, len(mixture.real))
    return {'vectors': count, 'real': real, 'size': mixture.means.shape[1], 'kinds': rows}


def _nearest(mixture: Mixture, count: int, asked: np.ndarray) -> list[set[int]]:
    """Returns the exact 10 nearest neighbours of each query, chunk by chunk."""
    queries, start = unit(asked), 0
    scores: Any = np.empty((len(asked), 0), np.float32)
    rows: Any = np.empty((len(asked), 0), np.int64)
    for chunk in mixture.chunks(count):
        numbers = np.arange(start, start + len(chunk))[None].repeat(len(asked), 0)
        scores = np.concatenate([scores, queries @ unit(chunk).T], axis=1)
        rows = np.concatenate([rows, numbers], axis=1)
        best = np.argpartition(-scores, min(_K, scores.shape[1]) - 1, axis=1)[:, :_K]
        scores, rows = (np.take_along_axis(x, best, axis=1) for x in (scores, rows))
        start += len(chunk)
    return [{*row} for row in rows.tolist()]


def _build(mixture: Mixture, count: int, kind: str) -> tuple[Index, float]:
    """Builds an index; returns it and the seconds without those of drawing."""
    made, seconds = create({}, mixture.means.shape[1], kind=kind, count=count), 0.0

    def timed(do: Any, *args: Any) -> None:
        nonlocal seconds
        begin = time.perf_counter()
        do(*args)
        seconds += time.perf_counter() - begin

    if made.training_size:
        timed(made.train, np.concatenate([*mixture.chunks(min(count, made.training_size))]))
    for number, chunk in enumerate(mixture.chunks(count)):
        timed(made.add, [f'{number * _CHUNK + i}' for i in range(len(chunk))], chunk)
    return made, seconds


def _ours(index: Index, asked: np.ndarray) -> tuple[list[set[int]], float]:
    """Returns the 10 nearest neighbours of each vector, and the milliseconds per query."""
    begin = time.perf_counter()
    found = [{i for i, _ in index.search(vector[None], _K)[0]} for vector in asked]
    return found, 1000 * (time.perf_counter() - begin) / len(asked)


def _by_hand(index: Index, asked: np.ndarray) -> float:
    """Returns the milliseconds per query of faiss itself."""
    ready = unit(asked)
    begin = time.perf_counter()
    for vector in ready:
        index.index.search(vector[None], _K)
    return 1000 * (time.perf_counter() - begin) / len(asked)


def _in_a_process(index: Index, asked: np.ndarray) -> dict[str, float]:
    """Returns figures of a new process that opens the file of an index and searches in it."""
    with tempfile.TemporaryDirectory() as folder:
        path, queries = Path(folder, 'index'), Path(folder, 'asked.npy')
        index.save(path)
        np.save(queries, asked)
        command = [sys.executable, '-m', 'benchmarks.search', str(path), str(queries)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {'file_mb': path.stat().st_size / 1e6, **json.loads(done.stdout)}


def _open_and_search(path: str, queries: str) -> dict[str, float]:
    """Opens the file of an index, answers queries, and returns the time and the memory."""
    asked = np.load(queries)
    faiss()
    begin = time.perf_counter()
    made = load(path, read_only=True)
    opened = 1000 * (time.perf_counter() - begin)
    _ours(made, asked)
    return {'open_ms': opened, 'search_mb': _peak_mb()}


def _peak_mb() -> float:
    """Returns the peak memory of this process."""
    # On Linux `getrusage` also counts the parent's peak until this program was started.
    if (status := Path('/proc/self/status')).exists():
        return int(status.read_text().split('VmHWM:')[1].split()[0]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == '__main__':
    print(json.dumps(_open_and_search(*sys.argv[1:])))
