"""Quality of image features: nearest neighbours, a linear probe and retrieval."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.progress import phase, progress_bar, track
from vision.data.source import Source
from vision.prediction.classifier import Classifier
from vision.search.index import unit
from vision.search.naming import own_split

_ROWS = 512  # rows of one block of the similarity matrix
_RECALLS = (1, 5, 10)


def judge_run(
    classifier: Classifier, split: str = 'test', endpoint: str = 'features'
) -> dict[str, Any]:
    """Evaluates a run's features on a split of its data, with the training split as reference.

    Returns:
      `{'split', 'endpoint', **judge(…)}`.

    Raises:
      UserError: the split does not exist or is the training split, or an image cannot be read.
    """
    if split in ('train', 'all'):
        raise UserError(
            'the probes are fitted on train; choose another split to evaluate the features on'
        )
    train, evaluated = (
        _vectors(classifier, own_split(classifier.run, s), endpoint) for s in ('train', split)
    )
    return {'split': split, 'endpoint': endpoint, **judge(*train, *evaluated)}


def judge(
    train: np.ndarray,
    train_labels: np.ndarray,
    vectors: np.ndarray,
    labels: np.ndarray,
    k: int = 20,
) -> dict[str, Any]:
    """Evaluates feature vectors by their cosine similarity and by a linear probe.

    Args:
      train: training vectors, float32 [M, D].
      train_labels: int [M].
      vectors: evaluation vectors, float32 [N, D].
      labels: int [N].
      k: the number of neighbours that vote.

    Returns:
      `knn` and `linear_probe`: the accuracy of a k-nearest-neighbour classifier and of logistic
      regression, both fitted on `train`. `recall@1`, `recall@5`, `recall@10` and `map`: retrieval
      among `vectors`, see `retrieval`. All these are fractions of 1. `count`: N.
    """
    # The dot product of unit vectors is their cosine.
    train, vectors = unit(train), unit(vectors)
    return {
        'knn': float((nearest_vote(train, train_labels, vectors, k) == labels).mean()),
        'linear_probe': linear_probe(train, train_labels, vectors, labels),
        **retrieval(vectors, labels),
        'count': len(labels),
    }


def nearest_vote(train: np.ndarray, labels: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """Classifies vectors by the majority of their k nearest neighbours; ties go to the lower class.

    Args:
      train: unit vectors float32 [M, D].
      labels: the classes of `train`, int [M].
      vectors: unit vectors float32 [N, D].
      k: the number of neighbours; M if it is larger.

    Returns:
      Classes, int [N].
    """
    k, classes = min(k, len(train)), int(labels.max()) + 1
    votes = []
    for scores in _similarities(vectors, train):
        # The order of the k nearest does not matter, so a partition suffices.
        nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        counts = (labels[nearest][..., None] == np.arange(classes)).sum(axis=1)
        votes.append(counts.argmax(axis=1))
    return np.concatenate(votes)


def linear_probe(
    train: np.ndarray, train_labels: np.ndarray, vectors: np.ndarray, labels: np.ndarray
) -> float:
    """Returns the accuracy of logistic regression (C = 1) on standardised vectors."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with phase('fitting the linear probe'):
        return float(probe.fit(train, train_labels).score(vectors, labels))


def retrieval(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Measures retrieval: each image is a query for the other images of its class.

    Images that are alone in their class are skipped.

    Args:
      vectors: unit vectors float32 [N, D].
      labels: int [N].

    Returns:
      `recall@k` for k = 1, 5, 10: the fraction of queries with an image of the same class among the
      k nearest others. `map`: the mean average precision of ranking all others. All are None if no
      class has two images.
    """
    hits: list[np.ndarray] = []
    precisions: list[np.ndarray] = []
    start = 0
    for scores in _similarities(vectors, vectors):
        own = np.arange(start, start + len(scores))
        # Rank all other images: the query itself is moved to the end and cut off.
        scores[np.arange(len(scores)), own] = -np.inf
        order = np.argsort(-scores, axis=1, kind='stable')[:, :-1]
        right = labels[order] == labels[own][:, None]
        right = right[right.any(axis=1)]  # skip queries that are alone in their class
        hits.append(np.stack([right[:, :k].any(axis=1) for k in _RECALLS], axis=1))
        # Average precision: the mean of the precision at the rank of each right image.
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
        raise UserError(f'{source.name}: features can only be judged with one class per image')
    # Every image must be readable, so that vectors and labels have the same order.
    parts = []
    done = 0
    with progress_bar() as start:
        move = start(f'describing {source.name}', source.num_examples)
        for _, vectors, failed in classifier.embed_source(source, endpoint):
            for position, reason in failed.items():
                raise UserError(f'{source.name}: example {position} cannot be read: {reason}')
            parts.append(vectors)
            done += len(vectors)
            move(done)
    return np.concatenate(parts), source.labels
