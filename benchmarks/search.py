"""Latency and recall of each kind of search index, compared with direct use of faiss."""

import statistics
import time
from typing import Any

import numpy as np

from vision.search.index import KINDS, Index, create, faiss

# Length of a vector, number of vectors per cluster, number of queries, and standard deviation
# within a cluster.
_SIZE, _OF_CLUSTER, _QUERIES, _SPREAD = 384, 100, 200, 0.5
_BATCH = 10_000
_ROUNDS = 3


def search_speed(
    count: int = 100_000, kinds: tuple[str, ...] = KINDS, threads: tuple[int, ...] = (1, 2)
) -> dict[str, Any]:
    """Searches for the 10 nearest neighbours of new vectors, one vector at a time.

    The peer is the same faiss index, called directly with the same parameters.

    Args:
      count: the number of vectors in the index. They have 384 floats and form Gaussian clusters of
        about 100, whose standard deviation is half that of the clusters' centres.
      kinds: kinds of indexes.
      threads: numbers of threads of a query.

    Returns:
      `vectors`, `size`, and rows `kinds`: `kind`, `build_seconds`, `megabytes` in memory, `threads`,
      `recall@10`, the milliseconds per query `ms` and `ms_faiss` (medians of three rounds in turn),
      and `ratio`, faiss' time over ours.
    """
    # Clustered vectors, since features of images are clustered by class.
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(1, count // _OF_CLUSTER), _SIZE)).astype(np.float32)

    def draw(n: int) -> np.ndarray:
        noise = rng.standard_normal((n, _SIZE), np.float32) * np.float32(_SPREAD)
        return centres[rng.integers(len(centres), size=n)] + noise

    stored, asked = draw(count), draw(_QUERIES)
    rows, right = [], None
    for kind in dict.fromkeys(['exact', *kinds]):
        index, seconds = _build(stored, kind)
        # The exact index gives the true neighbours.
        if right is None:
            right = _ours(index, asked)[0]
        for number in threads if kind in kinds else ():
            faiss().omp_set_num_threads(number)
            times = []
            for _ in range(_ROUNDS):
                found, ours = _ours(index, asked)
                times.append((ours, _by_hand(index, asked)))
            ours, hand = map(statistics.median, zip(*times, strict=True))
            hits = [len(a & b) / len(a) for a, b in zip(right, found, strict=True)]
            rows.append(
                {
                    'kind': kind,
                    'build_seconds': seconds,
                    'megabytes': _bytes(index) / 1e6,
                    'threads': number,
                    'recall@10': float(np.mean(hits)),
                    'ms': ours,
                    'ms_faiss': hand,
                    'ratio': hand / ours,
                }
            )
    return {'vectors': count, 'size': _SIZE, 'kinds': rows}


def _build(stored: np.ndarray, kind: str) -> tuple[Index, float]:
    """Builds an index; returns it and the seconds."""
    begin = time.perf_counter()
    index = create({}, _SIZE, kind=kind, count=len(stored))
    if index.training_size:
        index.train(np.random.default_rng(0).choice(stored, min(len(stored), index.training_size)))
    for start in range(0, len(stored), _BATCH):
        some = stored[start : start + _BATCH]
        index.add([f'{start + i}' for i in range(len(some))], some)
    return index, time.perf_counter() - begin


def _ours(index: Index, asked: np.ndarray) -> tuple[list[set[int]], float]:
    """Returns the 10 nearest neighbours of each vector, and the milliseconds per query."""
    begin = time.perf_counter()
    found = [{i for i, _ in index.search(vector[None], 10)[0]} for vector in asked]
    return found, 1000 * (time.perf_counter() - begin) / len(asked)


def _by_hand(index: Index, asked: np.ndarray) -> float:
    """Returns the milliseconds per query of faiss itself."""
    unit = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    begin = time.perf_counter()
    for vector in unit:
        index.index.search(vector[None], 10)
    return 1000 * (time.perf_counter() - begin) / len(asked)


def _bytes(index: Index) -> int:
    """Returns the size of the faiss index in memory."""
    return faiss().serialize_index(index.index).nbytes
