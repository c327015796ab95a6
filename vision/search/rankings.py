"""Figures of ranked answers: micro average precision, operating points, and the Oxford protocol.

Copies are judged as in the Image Similarity Challenge (Douze et al. 2021, "The 2021 Image
Similarity Dataset and Challenge", section 4): the answers of all queries, pairs of a query and a
reference with a score, are sorted together. A method must therefore give scores that can be
compared between queries, and no high score to a query without a reference.

Pairs with the same score are sorted against the method, wrong ones first.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

DEPTHS = (1, 5, 10)  # ranks of the mean precision mP@k
# The relevant images and the junk, which is left out of a ranking (Radenović et al. 2018,
# "Revisiting Oxford and Paris", section 4).
LEVELS = {
    'easy': (('easy',), ('junk', 'hard')),
    'medium': (('easy', 'hard'), ('junk',)),
    'hard': (('hard',), ('junk', 'easy')),
}


class Pairs(NamedTuple):
    """Answers of all queries of a trial.

    Attributes:
      query: int [P], the query of each answer.
      score: float [P], higher for a surer answer.
      right: bool [P], whether the reference is one of the query.
      positives: int [Q], the number of references of each query, found or not.
    """

    query: np.ndarray
    score: np.ndarray
    right: np.ndarray
    positives: np.ndarray

    def of(self, queries: np.ndarray) -> 'Pairs':
        """Returns the answers of some queries, bool [Q]; other queries have no references."""
        chosen = queries[self.query]
        positives = np.where(queries, self.positives, 0)
        return Pairs(self.query[chosen], self.score[chosen], self.right[chosen], positives)


def collect(
    answers: Sequence[Sequence[tuple[int, float]]], references: Sequence[Collection[int]]
) -> Pairs:
    """Puts the answers of all queries together.

    Args:
      answers: for each query the references that it may be a copy of, each once, with scores.
      references: for each query the references that it is a copy of.
    """
    rows = [
        (query, score, position in references[query])
        for query, found in enumerate(answers)
        for position, score in found
    ]
    query, score, right = zip(*rows, strict=True) if rows else ((), (), ())
    return Pairs(
        np.array(query, np.int64),
        np.array(score, np.float64),
        np.array(right, bool),
        np.array([len(some) for some in references], np.int64),
    )


def micro_ap(pairs: Pairs) -> float | None:
    """Returns the micro average precision; None without a right answer to find.

    It is the mean over all pairs of a query and its reference of the precision at the score of the
    pair, which is 0 for a pair that is not among the answers.
    """
    total = pairs.positives.sum()
    if not total:
        return None
    right, _ = _sorted(pairs)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float(precision[right].sum() / total)


def recall_at_precision(pairs: Pairs, precision: float = 0.9) -> tuple[float, float | None]:
    """Returns the highest recall at a precision of at least this, and the score that has it.

    Answers of this score and above are accepted. Without such a score: 0 and None.
    """
    right, scores = _sorted(pairs)
    hits = np.cumsum(right)
    # A threshold accepts all answers of the same score.
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    good = last & right_enough(hits, precision)
    if not good.any() or not pairs.positives.sum():
        return 0.0, None
    best = int(np.flatnonzero(good)[np.argmax(hits[good])])
    return float(hits[best] / pairs.positives.sum()), float(scores[best])


def right_enough(hits: np.ndarray, precision: float) -> np.ndarray:
    """Tells which numbers of right answers among the first 1, 2, … are enough, bool [P]."""
    return hits >= precision * np.arange(1, len(hits) + 1) - 1e-9


def at_threshold(pairs: Pairs, threshold: float) -> tuple[float | None, float | None]:
    """Returns the precision and the recall of the answers of this score and above.

    The precision is None without such an answer, the recall without a right answer to find.
    """
    accepted = pairs.score >= threshold
    hits, total = int(pairs.right[accepted].sum()), int(pairs.positives.sum())
    count = int(accepted.sum())
    return (hits / count if count else None), (hits / total if total else None)


def surest_mistake(pairs: Pairs) -> float:
    """Returns the highest score of a wrong answer; −inf if there is none."""
    return float(pairs.score[~pairs.right].max(initial=-np.inf))


def found_above(pairs: Pairs, score: float) -> float | None:
    """Returns the share of the right answers whose score is higher than this; None without any."""
    total = pairs.positives.sum()
    return float((pairs.right & (pairs.score > score)).sum() / total) if total else None


def oxford(
    rankings: Sequence[np.ndarray], truths: Sequence[Mapping[str, Collection[int]]]
) -> dict[str, dict[str, float | int | None]]:
    """Computes mAP and mP@k for easy, medium and hard queries, as the benchmark's authors do.

    Junk images are taken out of a ranking. The average precision is the area below the curve of
    precision over recall by trapezoids. The precision at k is measured at the rank of the last
    relevant image if that is below k. Queries without a relevant image are left out.

    Args:
      rankings: for each query the positions of the images, nearest first.
      truths: for each query the positions of 'easy', 'hard' and 'junk' images.

    Returns:
      For 'easy', 'medium' and 'hard': `map`, `mp@1`, `mp@5`, `mp@10`, all None without a query,
      and `queries`, the number of queries with a relevant image.
    """
    figures: dict[str, dict[str, float | int | None]] = {}
    for level, (good, bad) in LEVELS.items():
        rows = []
        for ranking, truth in zip(rankings, truths, strict=True):
            relevant, junk = (
                np.array(sorted({i for name in names for i in truth.get(name, ())}), np.int64)
                for names in (good, bad)
            )
            if len(relevant):
                ranked = ranking[~np.isin(ranking, junk)]
                rows.append(_precisions(np.isin(ranked, relevant), len(relevant)))
        names = ['map', *(f'mp@{k}' for k in DEPTHS)]
        means = np.mean(rows, axis=0).tolist() if rows else [None] * len(names)
        figures[level] = {**dict(zip(names, means, strict=True)), 'queries': len(rows)}
    return figures


def _precisions(relevant: np.ndarray, total: int) -> list[float]:
    """Returns the average precision of a ranking, bool [n], and its precision at each depth."""
    ranks = np.flatnonzero(relevant)
    if not len(ranks):
        return [0.0] * (1 + len(DEPTHS))
    found = np.arange(len(ranks))
    # Precision just before and at each relevant image; 1 before the first rank.
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    average = float(((before + (found + 1) / (ranks + 1)) / 2).sum() / total)
    depths = [min(int(ranks[-1]) + 1, k) for k in DEPTHS]
    return [average, *(float(relevant[:k].sum() / k) for k in depths)]


def _sorted(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Returns `right` and `score`, highest score first and wrong answers first among equals."""
    order = np.lexsort((pairs.right, -pairs.score))
    return pairs.right[order], pairs.score[order]
