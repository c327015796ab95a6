"""Latency and recall of the search index, exact and HNSW."""

import time
from typing import Any

import numpy as np

from vision.search.index import Index, create

# Length of a vector, number of clusters and of queries, standard deviation within a cluster.
_SIZE, _CLUSTERS, _QUERIES, _SPREAD = 512, 1000, 500, 0.5


def search_speed(count: int = 100_000) -> dict[str, Any]:
    """Searches for the 10 nearest neighbours of new vectors, one vector at a time.

    Args:
      count: the number of vectors in the index. They have 512 floats and form 1,000 Gaussian
        clusters, whose standard deviation is half that of the clusters' centres.

    Returns:
      `vectors`, `size`, `recall@10` and `build_seconds` of the HNSW index, and the milliseconds per
      query, `ms_exact` and `ms_hnsw`.
    """
    # Clustered vectors, since features of images are clustered by class.
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(_CLUSTERS, _SIZE)).astype(np.float32)

    def draw(n: int) -> np.ndarray:
        noise = rng.normal(size=(n, _SIZE), scale=_SPREAD).astype(np.float32)
        return centres[rng.integers(_CLUSTERS, size=n)] + noise

    stored, asked = draw(count), draw(_QUERIES)
    exact, graph = (create({}, _SIZE, kind=kind) for kind in ('exact', 'hnsw'))
    names = list(map(str, range(count)))
    # Build both; only the graph takes time. The exact index gives the true neighbours.
    exact.add(names, stored)
    begin = time.perf_counter()
    graph.add(names, stored)
    seconds = time.perf_counter() - begin
    right, exact_ms = _search(exact, asked)
    found, graph_ms = _search(graph, asked)
    # recall@10: the fraction of the true neighbours that the graph found.
    hits = [len(a & b) / len(a) for a, b in zip(right, found, strict=True)]
    return {
        'vectors': count,
        'size': _SIZE,
        'recall@10': float(np.mean(hits)),
        'build_seconds': seconds,
        'ms_exact': exact_ms,
        'ms_hnsw': graph_ms,
    }


def _search(index: Index, asked: np.ndarray) -> tuple[list[set[int]], float]:
    """Returns the 10 nearest neighbours of each vector, and the milliseconds per query."""
    begin = time.perf_counter()
    found = [{i for i, _ in index.search(vector[None], 10)[0]} for vector in asked]
    return found, 1000 * (time.perf_counter() - begin) / len(asked)
