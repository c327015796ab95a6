"""Compares methods that find copies of photos, on the copies of `search evaluate --copies`.

Finished rows, and the vectors of photos and copies, are kept in a folder: a run that was stopped
goes on where it was.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.core.text import json_text
from vision.models.base import init_variables
from vision.models.registry import create_model
from vision.prediction.classifier import Classifier
from vision.search import copies, judging, rankings, search
from vision.search.judging import NEAREST, Descriptor, Images, Method, Queries, Trial

MODEL = 'efficientnet_lite0'
_GEM = 'top:gem'  # pooling of its last feature maps
_SIZES = (16, 32, 48)  # of the whitening
_FLOOR = 96  # pixels that the ResNet-50 drawn at random sees
_COSINE = 0.95  # of `duplicates` before local features were compared
# Which of the six views of 'all' make up the others.
_OF_ALL = {'one': [0], 'flip': [0, 1], 'scales': [0, 2, 4], 'all': [*range(6)]}
_NORMALIZED = 'normalized scores'
_WITH = {'one': '', 'flip': ' + flip', 'scales': ' + scales', 'all': ' + flip and scales'}


def compare(photos: str, seed: int, each: int, output: Path) -> list[dict[str, Any]]:
    """Judges all methods on the same copies, and writes a table, records and pictures.

    Args:
      photos: the folder of the photos.
      seed: see `judging.judge_copies`.
      each: see `judging.plan`.
      output: the folder of `table.md`, `summary.json` and pictures; what is kept is in `work`.

    Returns:
      A row for each method: `method`, `seconds` of CPU time, and the figures.

    Raises:
      UserError: a photo cannot be read.
    """
    from benchmarks import copies_report

    classifier = Classifier.from_pretrained(MODEL, classify=False)
    every, failed = judging.read_photos(search.named(classifier.run, photos), seed)
    for path, reason in failed.items():
        raise UserError(f'{path} cannot be read: {reason}')
    trials = judging.plan(len(every), seed, each)
    work = output / 'work'
    work.mkdir(parents=True, exist_ok=True)
    mark = f'{_digest(every)}-{seed}-{each}'
    judge = _Judge(every, trials, seed, work / f'rows-{mark}.jsonl')
    _judge_all(judge, classifier, lambda c, e, n: _Kept(c, e, work / f'{n}-{mark}'))
    rows = [_without_threshold(row) for row in judge.rows.values()]
    copies_report.write(rows, output, {'photos': len(every), 'seed': seed, 'each': each})
    return rows


def _judge_all(
    judge: '_Judge', classifier: Classifier, kept: Callable[[Classifier, str, str], '_Kept']
) -> None:
    """Judges the methods one by one: simple ones, each option, the best options together."""
    mean, gem = kept(classifier, 'features', 'mean'), kept(classifier, _GEM, 'gem')
    judge('duplicates before local features', _duplicates_before(mean))
    judge('pixel thumbnails', _by_looks(_thumbnails))
    judge('imagehash alone', _by_looks(_hashes))
    judge(MODEL, judging.by_vectors(mean))
    judge(f'{MODEL} + verification', judging.by_detector(mean))
    mean.whole = True
    for views in ('flip', 'scales', 'all'):
        judge(MODEL + _WITH[views], judging.by_vectors(mean, views))
    for size in _SIZES:
        judge(f'{MODEL} + whitening to {size}', judging.by_vectors(mean, whiten=size))
    # The photos for tuning are the background of the judged trial. Their copies see themselves in
    # it, so that neither this option nor a threshold can be tuned: it is only reported.
    judge(f'{MODEL} + {_NORMALIZED}', judging.by_vectors(mean, background=judge.tuning(mean)))
    judge(f'{MODEL} + GeM', judging.by_vectors(gem))
    floor = kept(_drawn_at_random(classifier), 'features', 'floor')
    judge('ResNet-50 drawn at random', judging.by_vectors(floor))

    # The best value of each option on the photos for tuning, together.
    describe = judge.best({f'{MODEL}': mean, f'{MODEL} + GeM': gem})
    views = judge.best({MODEL + text: views for views, text in _WITH.items()})
    size = judge.best({MODEL: 0, **{f'{MODEL} + whitening to {n}': n for n in _SIZES}})
    describe.whole = views != 'one'
    name = f'best options: {"GeM" if describe is gem else "mean"}{_WITH[views]}'
    name += f' + whitening to {size}' if size else ''
    judge(name, judging.by_vectors(describe, views, size))
    judge(
        f'{name} + {_NORMALIZED}',
        judging.by_vectors(describe, views, size, judge.tuning(describe)),
    )
    judge(f'{name} + verification', judging.by_detector(describe, views, size))


def _without_threshold(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row without the figures of a tuned threshold where none can be tuned."""
    if not row['method'].endswith(_NORMALIZED):
        return row
    return row | dict.fromkeys(('threshold', 'precision', 'recall'))


class _Judge:
    """Judges methods on two trials, and keeps their rows in a file."""

    def __init__(
        self, photos: Sequence[np.ndarray], trials: tuple[Trial, Trial], seed: int, path: Path
    ):
        self._photos, self._trials, self._seed, self._path = photos, trials, seed, path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.rows = {row['method']: row for row in map(json.loads, lines)}

    def __call__(self, name: str, method: Method) -> None:
        """Judges a method, unless its row is finished."""
        if name in self.rows:
            return
        start = time.process_time()
        tuning, judged = (
            judging.answer(method, self._photos, trial, self._seed, name) for trial in self._trials
        )
        self.rows[name] = {
            'method': name,
            'seconds': round(time.process_time() - start),
            'collection': len(self._trials[1].collection),
            'queries': len(self._trials[1].queries),
            'micro_ap of tuning': rankings.micro_ap(tuning),
            **judging.figures(judged, self._trials[1], rankings.recall_at_precision(tuning)[1]),
        }
        with open(self._path, 'a') as file:
            file.write(json_text(self.rows[name]) + '\n')

    def tuning(self, describe: Descriptor) -> Any:
        """Returns an index of the photos of the trial for tuning."""
        return describe.index([self._photos[i] for i in self._trials[0].collection])

    def best(self, choices: dict[str, Any]) -> Any:
        """Returns the value whose row has the highest micro-AP on the photos for tuning."""
        return choices[max(choices, key=lambda name: self.rows[name]['micro_ap of tuning'])]


class _Kept(Descriptor):
    """Computes the vectors of images once, and keeps them in files.

    Attributes:
      whole: compute all views of the queries, which are then chosen from.
    """

    whole = False

    def __init__(self, classifier: Classifier, endpoint: str, prefix: Path):
        super().__init__(classifier, endpoint)
        self._prefix = prefix

    def __call__(self, images: Images, views: str = 'one') -> Iterable[np.ndarray]:
        """Yields the vectors of the views of each image, float32 [V, D]."""
        if isinstance(images, Queries):
            computed = 'all' if self.whole else views
            mark = hashlib.sha256(repr(images.trial).encode()).hexdigest()[:8]
        else:
            computed, mark = views, _digest(images)
        path = self._prefix.with_name(f'{self._prefix.name}-{mark}-{computed}.npy')
        if not path.is_file():
            vectors = np.stack(list(super().__call__(images, computed)))
            temporary = path.with_suffix('.tmp.npy')
            np.save(temporary, vectors)
            temporary.rename(path)
        vectors = np.load(path)
        return vectors[:, _OF_ALL[views]] if computed == 'all' else vectors


def _duplicates_before(describe: Descriptor) -> Method:
    """The rule of `duplicates` before local features: near vectors and the same thumbnail."""

    def method(collection: Images, queries: Images) -> Iterator[Any]:
        index = describe.index(collection)
        known = [copies.look(collection[i]) for i in range(len(collection))]
        for number, vectors in enumerate(describe(queries)):
            own = copies.look(queries[number])
            near = index.search(vectors, NEAREST)[0]
            yield [
                (i, score)
                for i, score in near
                if score >= _COSINE and copies.same_look(own, known[i])
            ]

    return method


def _by_looks(compare: Callable[[list[copies.Look], copies.Look], np.ndarray]) -> Method:
    """The method that ranks the collection by a score of looks."""

    def method(collection: Images, queries: Images) -> Iterator[Any]:
        known = [copies.look(collection[i]) for i in range(len(collection))]
        for number in range(len(queries)):
            scores = compare(known, copies.look(queries[number]))
            order = np.argsort(-scores, kind='stable')[:NEAREST]
            yield list(zip(order.tolist(), scores[order].tolist(), strict=True))

    return method


def _thumbnails(known: list[copies.Look], own: copies.Look) -> np.ndarray:
    """Returns the correlations of grey thumbnails of 16 × 16 pixels."""
    return np.stack([look.thumbnail for look in known]) @ own.thumbnail


def _hashes(known: list[copies.Look], own: copies.Look) -> np.ndarray:
    """Returns the fractions of equal bits of the perceptual hashes."""
    bits = np.bitwise_count(np.array([look.hashes[0] for look in known]) ^ own.hashes[0])
    return 1 - bits / 64


def _drawn_at_random(classifier: Classifier) -> Classifier:
    """Returns a classifier with a ResNet-50 of random weights, which sees small images."""
    run = classifier.run
    config = run.config.copy_and_resolve_references()
    config.model.name = 'resnet50'
    config.preprocess.eval = f'decode|resize_small({_FLOOR})|central_crop({_FLOOR})'
    model = create_model('resnet50', num_classes=run.model.num_classes)
    shape = (_FLOOR, _FLOOR, 3)
    variables = jax.jit(lambda key: init_variables(model, shape, key))(jax.random.key(0))
    return Classifier(
        dataclasses.replace(
            run,
            config=config,
            input_shape=shape,
            model=model,
            variables=mesh_lib.put_replicated(variables, run.mesh),
        )
    )


def _digest(images: Images) -> str:
    """Returns a fingerprint of images: 8 hexadecimal digits."""
    found = hashlib.sha256()
    for i in range(len(images)):
        found.update(np.ascontiguousarray(images[i]).tobytes())
    return found.hexdigest()[:8]
