"""Quality of image features: how well classes can be told from them alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.progress import phase, progress_bar, track
from vision.data.source import Source
from vision.prediction.classifier import Classifier
from vision.search.index import unit
from vision.search.search import own_split

_ROWS = 512  # vectors that are compared with all others at once
_RECALLS = (1, 5, 10)


def judge_run(
    classifier: Classifier, split: str = 'test', endpoint: str = 'features'
) -> dict[str, Any]:
    """Judges a run's features on a split of its own data; the training split is what is known.

    Returns:
      `{'split', 'endpoint', **judge(…)}`.

    Raises:
      UserError: no such split, the training split itself, or images that cannot be read.
    """
    if split == 'train':
        raise UserError(
            'features are fitted on train, so they are judged on another split, not train'
        )
    known, asked = (
        _vectors(classifier, own_split(classifier.run, s), endpoint) for s in ('train', split)
    )
    return {'split': split, 'endpoint': endpoint, **judge(*known, *asked)}


def judge(
    train: np.ndarray,
    train_labels: np.ndarray,
    vectors: np.ndarray,
    labels: np.ndarray,
    k: int = 20,
) -> dict[str, Any]:
    """Judges vectors of images.

    Args:
      train: float32 [M, D], what is known; with int labels [M].
      train_labels: int [M].
      vectors: float32 [N, D], what is asked for.
      labels: int [N].
      k: neighbours that vote.

    Returns:
      `knn` and `linear_probe`: the accuracy of the k nearest neighbours' vote and of logistic
      regression, both fitted on `train`. `recall@1`, `@5`, `@10`: how often one of so many nearest
      others has the right class; `map`: the mean average precision of ranking all others. The
      last two are among `vectors` themselves. Nearness is the cosine. All are fractions of 1;
      `count` is N.
    """
    train, vectors = unit(train), unit(vectors)
    return {
        'knn': float((nearest_vote(train, train_labels, vectors, k) == labels).mean()),
        'linear_probe': linear_probe(train, train_labels, vectors, labels),
        **retrieval(vectors, labels),
        'count': len(labels),
    }


def nearest_vote(train: np.ndarray, labels: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """The class that most of the k nearest have (of equal votes the lower class): int [N].

    Args:
      train: unit vectors float32 [M, D].
      labels: of them, int [M].
      vectors: unit vectors float32 [N, D].
      k: how many vote, at most M.
    """
    k, classes = min(k, len(train)), int(labels.max()) + 1
    votes = []
    for scores in _similarities(vectors, train):
        nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        counts = (labels[nearest][..., None] == np.arange(classes)).sum(axis=1)
        votes.append(counts.argmax(axis=1))
    return np.concatenate(votes)


def linear_probe(
    train: np.ndarray, train_labels: np.ndarray, vectors: np.ndarray, labels: np.ndarray
) -> float:
    """The accuracy of logistic regression on standardised vectors (scikit-learn's, C = 1)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with phase('fitting the linear probe'):
        return float(probe.fit(train, train_labels).score(vectors, labels))


def retrieval(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Each image as a query for the others of its class; one that has no others is left out.

    Args:
      vectors: unit vectors float32 [N, D].
      labels: int [N].

    Returns:
      `recall@1`, `recall@5`, `recall@10` and `map`; None where no class has two images.
    """
    hits: list[np.ndarray] = []
    precisions: list[np.ndarray] = []
    start = 0
    for scores in _similarities(vectors, vectors):
        own = np.arange(start, start + len(scores))
        scores[np.arange(len(scores)), own] = -np.inf  # itself comes last, and is cut off
        order = np.argsort(-scores, axis=1, kind='stable')[:, :-1]
        right = labels[order] == labels[own][:, None]
        right = right[right.any(axis=1)]
        hits.append(np.stack([right[:, :k].any(axis=1) for k in _RECALLS], axis=1))
        found = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)
        precisions.append((found * right).sum(axis=1) / right.sum(axis=1))
        start += len(scores)
    names, precision = [f'recall@{k}' for k in _RECALLS], np.concatenate(precisions)
    if not len(precision):
        return dict.fromkeys([*names, 'map'])
    recall = np.concatenate(hits).mean(axis=0).tolist()
    return {**dict(zip(names, recall, strict=True)), 'map': float(precision.mean())}


def _similarities(queries: np.ndarray, vectors: np.ndarray) -> Iterator[np.ndarray]:
    for start in track(range(0, len(queries), _ROWS), -(-len(queries) // _ROWS), 'comparing'):
        yield queries[start : start + _ROWS] @ vectors.T


def _vectors(
    classifier: Classifier, source: Source, endpoint: str
) -> tuple[np.ndarray, np.ndarray]:
    if source.multi_label:
        raise UserError(f'{source.name}: features are judged by one class an image, not by several')
    parts = []
    done = 0
    with progress_bar() as start:
        move = start(f'describing {source.name}', source.num_examples)
        for _, vectors, failed in classifier.embed_source(source, endpoint):
            for position, reason in failed.items():
                raise UserError(f'{source.name}, example {position}, cannot be read: {reason}')
            parts.append(vectors)
            done += len(vectors)
            move(done)
    return np.concatenate(parts), source.labels
