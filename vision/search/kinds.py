"""Kinds of faiss index: exact search, a graph of neighbours (HNSW), and lists of codes (IVF-PQ).

HNSW is "hierarchical navigable small world graphs" (Malkov and Yashunin 2016), IVF-PQ an inverted
file with product quantization (Jégou et al. 2011, "Product quantization for nearest neighbor
search").
"""

from typing import Any

import numpy as np

from vision.core.errors import UserError, not_installed, unknown

METRICS = ('cosine', 'euclidean')
KINDS = ('exact', 'hnsw', 'ivfpq')
LEAST = 1000  # smallest number of images of an IVF-PQ index
# HNSW's M, efConstruction and efSearch: links per node, and the beam widths of build and search.
_HNSW_LINKS, _HNSW_BUILD, _HNSW_SEARCH = 32, 200, 256
# IVF-PQ has `_LISTS` · √N lists for N images, trained on `_PER_LIST` images each. A query searches
# one in `_PROBED` lists. One byte encodes `_PER_BYTE` values of a vector; `_CODES` images train the
# codes.
_LISTS, _PER_LIST, _PROBED, _PER_BYTE, _CODES = 4, 64, 64, 4, 65536
_SAMPLE = 1000  # number of vectors on which the recall is measured


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


def make(size: int, metric: str, kind: str, count: int = 0) -> Any:
    """Makes an empty faiss index.

    Args:
      size: D, the length of the vectors. The vectors of an IVF-PQ index have the next multiple of 4
        values: zeros at their ends change neither scores nor distances, and each byte of a code
        then stands for four values, whatever D is.
      metric: 'cosine' or 'euclidean'.
      kind: 'exact'; 'hnsw', which pays off from about 100,000 images; or 'ivfpq', with codes of
        about D / 4 bytes, for millions of images.
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
        return faiss().IndexFlat(size, measure)
    if kind == 'hnsw':
        made = faiss().IndexHNSWFlat(size, _HNSW_LINKS, measure)
        made.hnsw.efConstruction, made.hnsw.efSearch = _HNSW_BUILD, _HNSW_SEARCH
        return made
    if count < LEAST:
        raise UserError(
            f'--kind=ivfpq needs at least {LEAST:,} images, there are {count:,}; use --kind=exact'
        )
    lists, codes = min(round(_LISTS * count**0.5), count // _PER_LIST), -(-size // _PER_BYTE)
    made = faiss().index_factory(codes * _PER_BYTE, f'IVF{lists},PQ{codes}', measure)
    made.nprobe = max(1, lists // _PROBED)
    made.do_polysemous_training = False  # takes most of the time, for a filter that is not used
    made.cp.min_points_per_centroid = made.pq.cp.min_points_per_centroid = 1  # no warnings
    return made


def kind_of(index: Any) -> str:
    """Returns the kind of a faiss index."""
    if hasattr(index, 'hnsw'):
        return 'hnsw'
    return 'ivfpq' if hasattr(index, 'pq') else 'exact'


def training_size(index: Any) -> int:
    """Returns the number of vectors that an index should be trained with; 0 if it is trained."""
    return 0 if index.is_trained else max(_CODES, _PER_LIST * index.nlist)


def find(
    index: Any, vectors: np.ndarray, k: int, chosen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Searches a faiss index.

    Args:
      index: the index, of N vectors.
      vectors: float32 [n, D].
      k: the number of neighbours.
      chosen: bool [N]; all vectors that are True are compared, even in an approximate index,
        because an approximate search could miss a few chosen images among many others.

    Returns:
      Scores, float32 [n, k], and positions, int64 [n, k], which are -1 if there are no more.
    """
    if chosen is None:
        return index.search(vectors, k)
    select = faiss().IDSelectorBitmap(np.packbits(chosen, bitorder='little'))
    if kind_of(index) == 'ivfpq':
        options = faiss().SearchParametersIVF(sel=select, nprobe=index.nlist)
    else:
        options = faiss().SearchParameters(sel=select)
    return _exhaustive(index).search(vectors, k, params=options)


def keep(index: Any, kept: np.ndarray) -> None:
    """Removes the vectors that are False in `kept`, bool [N], and renumbers the others.

    The graph of an HNSW index is rebuilt from the remaining vectors.
    """
    if kind_of(index) == 'hnsw':
        rest = index.reconstruct_n(0, index.ntotal)[kept]
        index.reset()
        index.add(rest)
        return
    index.remove_ids(faiss().IDSelectorBatch(np.flatnonzero(~kept)))
    if kind_of(index) == 'ivfpq':  # faiss does not renumber these
        lists, numbers = index.invlists, np.cumsum(kept) - 1
        for i in range(index.nlist):
            if size := lists.list_size(i):
                ids = faiss().rev_swig_ptr(lists.get_ids(i), size)
                ids[:] = numbers[ids]


def recall(index: Any, metric: str, k: int = 10) -> float | None:
    """Returns the fraction of the exact k nearest neighbours that an HNSW index finds.

    The queries are a sample of its own vectors. None for an IVF-PQ index, which does not keep the
    exact vectors.
    """
    if kind_of(index) == 'ivfpq':
        return None
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(index.ntotal, min(_SAMPLE, index.ntotal), replace=False))
    queries = np.stack([index.reconstruct(int(i)) for i in chosen])
    k = min(k, index.ntotal)
    found, _ = index.search(queries, k)
    exact, _ = _exhaustive(index).search(queries, k)
    # Compare scores instead of positions: images with equal vectors are interchangeable.
    sign = 1 if metric == 'cosine' else -1
    return float(np.mean(sign * found >= sign * exact[:, -1:] - 1e-5 * np.abs(exact[:, -1:])))


def _exhaustive(index: Any) -> Any:
    """Returns the faiss index that compares every stored vector; a graph has its own inside."""
    return faiss().downcast_index(index.storage) if kind_of(index) == 'hnsw' else index
