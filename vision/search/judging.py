"""Trials of the search: copies of photos made by a seed, and given right answers.

A trial of copies has a collection and queries. Half of the queries are copies of photos of the
collection, the others, the distractors, are copies of photos that are not in it. A quarter of the
photos make a trial of their own, on which thresholds and options are chosen.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vision.core.errors import UserError
from vision.core.progress import track
from vision.data.source import BadImage, read_some
from vision.prediction.classifier import Classifier
from vision.prediction.given import Given
from vision.preprocess.graph import decoded
from vision.preprocess.pictures import thumbnail, to_rgb
from vision.search import descriptors, rankings, transformations, truth
from vision.search.copies import CopyDetector, Limits, hash_of
from vision.search.descriptions import Named, full_name
from vision.search.fingerprint import made_by
from vision.search.index import Index, create
from vision.search.search import AnyIndex, background_of, query

SIDE = 300  # pixels of the longer side of the photos that copies are made of
NEAREST = 100  # images that are an answer to a query
_FEWEST, _MOST = 16, 2000  # photos of an evaluation
_TUNING = 4  # one photo in so many is for tuning
_PRECISION = 0.9


class Query(NamedTuple):
    """A query of a trial.

    Attributes:
      photo: position of the photo that it is a copy of.
      transformation: one of `transformations.NAMES`.
      other: position of the photo that a screenshot shows around it, which is not in the
        collection.
    """

    photo: int
    transformation: str
    other: int


class Trial(NamedTuple):
    """A collection and queries, as positions in a list of photos."""

    collection: list[int]
    queries: list[Query]


class Queries:
    """The queries of a trial as images, which are made one by one when they are iterated over.

    Attributes:
      trial: the trial.
    """

    def __init__(self, photos: Sequence[np.ndarray], trial: Trial, seed: int):
        """Takes the photos that the trial has the positions of."""
        self._photos, self.trial, self._seed = photos, trial, seed

    def __len__(self) -> int:
        return len(self.trial.queries)

    def __getitem__(self, number: int) -> np.ndarray:
        asked = self.trial.queries[number]
        photo, other = self._photos[asked.photo], self._photos[asked.other]
        return transformations.copy_of(photo, asked.transformation, self._seed, other)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))


Images = Sequence[np.ndarray] | Queries
# Answers the queries: takes the photos of the collection and the queries, and yields for each query
# the positions of photos of the collection that it may be a copy of, with scores.
Method = Callable[[Images, Images], Iterable[Sequence[tuple[int, float]]]]


def plan(count: int, seed: int = 0, each: int = 50) -> tuple[Trial, Trial]:
    """Draws the trial for tuning and the trial that is judged; they have no photo in common.

    Args:
      count: the number of photos, at least 16.
      seed: decides where each photo belongs.
      each: the number of photos of the collection, and of photos outside it, that each
        transformation is applied to; fewer if there are not so many, and half as many for tuning.

    Raises:
      UserError: there are too few photos.
    """
    if count < _FEWEST:
        raise UserError(f'{count} photos are too few to judge by: use at least {_FEWEST}')
    rng = np.random.default_rng(seed)
    order = rng.permutation(count).tolist()
    return (
        _trial(order[: count // _TUNING], rng, -(-each // 2)),
        _trial(order[count // _TUNING :], rng, each),
    )


def _trial(photos: list[int], rng: np.random.Generator, each: int) -> Trial:
    collection, outside = photos[: len(photos) // 2], photos[len(photos) // 2 :]
    queries = []
    for name in transformations.NAMES:
        for some in (collection, outside):
            for photo in rng.choice(some, min(each, len(collection)), replace=False).tolist():
                other = int(rng.choice([i for i in outside if i != photo]))
                queries.append(Query(photo, name, other))
    return Trial(collection, queries)


def read_photos(images: Iterable[Named], seed: int = 0) -> tuple[list[np.ndarray], dict[str, str]]:
    """Reads photos for a trial: RGB, reduced to a longer side of 300 pixels.

    Of more than 2,000 photos a sample is read.

    Returns:
      The photos, uint8 [H, W, 3], and the reasons for those that cannot be read, by name.
    """
    every = [(some, i) for some in images for i in range(some.source.num_examples)]
    if len(every) > _MOST:
        chosen = np.random.default_rng(seed).choice(len(every), _MOST, replace=False)
        every = [every[i] for i in np.sort(chosen)]
    photos, failed = [], dict[str, str]()
    for some, i in track(every, len(every), 'reading photos'):
        try:
            ((_, image, _),) = read_some(some.source, [i])
            photos.append(np.asarray(thumbnail(to_rgb(decoded(image)), SIDE)))
        except BadImage as e:
            failed[full_name(some, i)] = str(e)
    return photos, failed


def judge_copies(
    method: Method, photos: Sequence[np.ndarray], seed: int = 0, each: int = 50
) -> dict[str, Any]:
    """Judges how well a method finds copies of photos.

    Args:
      method: answers queries, see `Method`.
      photos: uint8 [H, W, 3].
      seed: decides which photos are in the collection, and draws the copies.
      each: see `plan`.

    Returns:
      `photos`, `collection` and `queries`, counts of the judged trial, and `figures` of it.

    Raises:
      UserError: there are too few photos.
    """
    tuning, judged = plan(len(photos), seed, each)
    _, threshold = rankings.recall_at_precision(
        answer(method, photos, tuning, seed, 'tuning'), _PRECISION
    )
    pairs = answer(method, photos, judged, seed, 'judging')
    counts = {'collection': len(judged.collection), 'queries': len(judged.queries)}
    return {'photos': len(photos), **counts, **figures(pairs, judged, threshold)}


def answer(
    method: Method, photos: Sequence[np.ndarray], trial: Trial, seed: int, title: str = 'judging'
) -> rankings.Pairs:
    """Lets a method answer the queries of a trial."""
    position = {photo: i for i, photo in enumerate(trial.collection)}
    references = [
        {position[asked.photo]} if asked.photo in position else set[int]()
        for asked in trial.queries
    ]
    collection = [photos[i] for i in trial.collection]
    answers = method(collection, Queries(photos, trial, seed))
    return rankings.collect(list(track(answers, len(trial.queries), title)), references)


def figures(pairs: rankings.Pairs, trial: Trial, threshold: float | None) -> dict[str, Any]:
    """Computes the figures of the answers to a trial.

    Args:
      pairs: the answers.
      trial: the trial.
      threshold: score that was chosen on other photos; None if no score had the precision.

    Returns:
      `micro_ap`; `recall@p90`, the recall at a precision of 90 %; `found`, the share of the copies
      found with a higher score than that of any wrong answer to any query; `threshold`, and the
      `precision` and `recall` of the answers of that score and above. `transformations` has a row
      of `micro_ap`, `recall@p90` and `found` for each, with its own copies and distractors.
    """
    mistake = rankings.surest_mistake(pairs)
    kinds = np.array([asked.transformation for asked in trial.queries])

    def row(some: rankings.Pairs) -> dict[str, Any]:
        return {
            'micro_ap': rankings.micro_ap(some),
            'recall@p90': rankings.recall_at_precision(some, _PRECISION)[0],
            'found': rankings.found_above(some, mistake),
        }

    at = (None, None) if threshold is None else rankings.at_threshold(pairs, threshold)
    return {
        **row(pairs),
        'threshold': threshold,
        **dict(zip(('precision', 'recall'), at, strict=True)),
        'transformations': [
            {'name': name, **row(pairs.of(kinds == name))} for name in transformations.NAMES
        ],
    }


class Descriptor:
    """Computes the vectors of images for a trial.

    Attributes:
      about: `fingerprint.made_by` of the classifier.
    """

    def __init__(self, classifier: Classifier, endpoint: str = 'features'):
        """Takes a classifier and the endpoint that describes an image."""
        self._classifier, self._endpoint = classifier, endpoint
        self.about = made_by(classifier, endpoint)

    def __call__(self, images: Images, views: str = 'one') -> Iterable[np.ndarray]:
        """Yields the vectors of the views of each image, float32 [V, D]."""
        return descriptors.embed_views(self._classifier, images, len(images), self._endpoint, views)

    def index(self, photos: Images, whiten: int = 0) -> Index:
        """Builds an index of photos, which are named by their positions."""
        vectors = np.concatenate(list(self(photos)))
        index = create(self.about, whiten or vectors.shape[1])
        if whiten:
            index.whitening = descriptors.fit_whitening(vectors, whiten)
        index.add([str(i) for i in range(len(photos))], vectors)
        return index


def by_vectors(
    describe: Descriptor,
    views: str = 'one',
    whiten: int = 0,
    background: Index | None = None,
) -> Method:
    """Returns the method that ranks by the cosine of vectors; see `building.build` and `query`."""

    def method(collection: Images, queries: Images) -> Iterator[Any]:
        index = describe.index(collection, whiten)
        less = background_of(index, background)
        for vectors in describe(queries, views):
            mean = vectors.mean(axis=0, keepdims=True)
            bias = float(less(mean)[0])
            yield [(i, score - bias) for i, score in index.search(mean, NEAREST)[0]]

    return method


def by_detector(
    describe: Descriptor, views: str = 'one', whiten: int = 0, limits: Limits | None = None
) -> Method:
    """Returns the method of `duplicates`: candidates by vectors and hashes, which are verified.

    The vector of each view of a query is searched for.
    """

    def method(collection: Images, queries: Images) -> Iterator[Any]:
        index = describe.index(collection, whiten)
        hashes = np.array([hash_of(collection[i]) for i in range(len(collection))], np.uint64)
        detector = CopyDetector(collection.__getitem__, index.search, hashes, limits or Limits())
        for number, vectors in enumerate(describe(queries, views)):
            found = detector(queries[number], vectors)
            yield [(one.position, one.evidence.score) for one in found]

    return method


def judge_pairs(
    classifier: Classifier,
    index: AnyIndex,
    images: Sequence[Named],
    pairs: dict[str, set[str]],
    **options: Any,
) -> dict[str, Any]:
    """Judges the answers of an index to queries whose references are given.

    Args:
      classifier: the one that made the index.
      index: an index of the references.
      images: the queries.
      pairs: the names of each query's references; see `truth.read_pairs`. A query that has none is
        a distractor.
      **options: as for `search.query`.

    Returns:
      `queries` and `references`, counts; `micro_ap`, `recall@p90` and its `threshold`; `found`, the
      share of the pairs with a higher score than that of any wrong answer; `recall@1` and
      `recall@10`, the shares among the nearest 1 and 10 answers to a query.

    Raises:
      UserError: a query or reference of the pairs is missing.
    """
    names = [full_name(some, i) for some in images for i in range(some.source.num_examples)]
    known, asked = truth.Positions(index.names, 'the index'), truth.Positions(names, 'the queries')
    references: list[Collection[int]] = [set() for _ in names]
    for name, some in pairs.items():
        if some:
            references[asked[name]] = {known[reference] for reference in some}
    answers = _answers(classifier, index, images, NEAREST, options)
    found = rankings.collect(answers, references)
    recall, threshold = rankings.recall_at_precision(found, _PRECISION)
    hits = {
        f'recall@{k}': float(
            sum(
                position in some
                for row, some in zip(answers, references, strict=True)
                for position, _ in row[:k]
            )
            / found.positives.sum()
        )
        for k in (1, 10)
    }
    return {
        'queries': len(names),
        'references': len(index),
        'micro_ap': rankings.micro_ap(found),
        'recall@p90': recall,
        'threshold': threshold,
        'found': rankings.found_above(found, rankings.surest_mistake(found)),
        **hits,
    }


def judge_oxford(
    classifier: Classifier,
    index: AnyIndex,
    images: Sequence[Named],
    given: truth.Oxford,
    **options: Any,
) -> dict[str, Any]:
    """Judges an index by the protocol of Oxford and Paris; see `rankings.oxford`.

    Args:
      classifier: the one that made the index.
      index: an index of the benchmark's images.
      images: images among which are the queries. A query is cut out by its box.
      given: the right answers.
      **options: as for `search.query`.

    Returns:
      `queries` and `images`, counts, and `levels`, rows of `level`, `map`, `mp@1`, `mp@5`, `mp@10`
      and `queries`.

    Raises:
      UserError: an image of the benchmark is missing.
    """
    known = truth.Positions(index.names, 'the index')
    where = np.array([known[name] for name in given.images], np.int64)
    queries = _cut_out(images, given)
    answers = _answers(classifier, index, [queries], len(index), options)
    # Positions in the index become positions in the benchmark's list; other images are no answers.
    place = np.full(len(index), -1)
    place[where] = np.arange(len(where))
    orders = [place[[i for i, _ in row]] for row in answers]
    levels = rankings.oxford([order[order >= 0] for order in orders], given.truths)
    rows = [{'level': level, **row} for level, row in levels.items()]
    return {'queries': len(given.queries), 'images': len(given.images), 'levels': rows}


def _cut_out(images: Sequence[Named], given: truth.Oxford) -> Named:
    """Returns the query images, each cut out by its box."""
    every = [(some, i) for some in images for i in range(some.source.num_examples)]
    known = truth.Positions([some.names[i] for some, i in every], 'the queries')
    found = []
    for name, box in zip(given.queries, given.boxes, strict=True):
        some, i = every[known[name]]
        ((_, image, _),) = read_some(some.source, [i])
        try:
            pixels = decoded(image)
        except BadImage as e:
            raise UserError(f'{name} cannot be read: {e}') from None
        if box is not None:
            left, top, right, bottom = map(round, box)
            pixels = pixels[top:bottom, left:right]
        if not pixels.size:
            raise UserError(f'--truth: the bbx {box} is outside of {name}')
        found.append(pixels)
    return Named(Given(found), given.queries)


def _answers(
    classifier: Classifier, index: AnyIndex, images: Sequence[Named], count: int, options: Any
) -> list[list[tuple[int, float]]]:
    """Returns the nearest images of each query, as positions in the index and scores."""
    places, answers = {name: i for i, name in enumerate(index.names)}, []
    # Euclidean distances are smaller for a surer answer.
    sign = -1 if index.metric == 'euclidean' else 1
    total = sum(some.source.num_examples for some in images)
    for found in track(query(classifier, index, images, count, **options), total, 'searching'):
        if 'error' in found:
            raise UserError(f'{found["path"]} cannot be read: {found["error"]}')
        answers.append([(places[n['path']], sign * n['score']) for n in found['neighbours']])
    return answers
