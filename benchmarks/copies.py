"""Table of methods that find copies of photos, judged as `experiments.search evaluate --copies` does.

Rows that are finished, and the vectors of photos and copies, are kept in a folder, so that a run
that is stopped goes on where it was.
"""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.text import json_text
from vision.prediction.classifier import Classifier
from vision.search import judging, rankings, search
from vision.search.descriptors import VIEWS
from vision.search.judging import Images, Method, Queries, Trial

# Sizes of the whitening, which are tried on the tuning photos.
_WHITENED = (16, 32, 48)
_MAPS = 'top'  # the last feature maps of EfficientNet
_FLOOR_SIZE = 96  # pixels of the ResNet-50 that is drawn at random
# The view numbers of 'all' that make up the others.
_OF_ALL = {'one': [0], 'flip': [0, 1], 'scales': [0, 2, 4], 'all': [*range(6)]}


class Kept(judging.Descriptor):
    """Vectors that are computed once and kept in a file for each set of images."""

    def __init__(self, classifier: Classifier, endpoint: str, folder: Path, name: str):
        """Takes the folder of the files, and the name of the model in their names."""
        super().__init__(classifier, endpoint)
        self._folder, self._name = folder, name.replace(':', '-')
        self.whole = False  # compute all views of queries, for rows with any of them

    def __call__(self, images: Images, views: str = 'one') -> Iterable[np.ndarray]:
        """Yields the vectors of the views of each image, float32 [V, D]."""
        computed = 'all' if self.whole and isinstance(images, Queries) else views
        for kind in ('all', computed):
            path = self._folder / f'{self._name}-{_mark(images)}-{kind}.npy'
            if path.is_file():
                return np.load(path)[:, _OF_ALL[views] if kind == 'all' else slice(None)]
        vectors = np.stack(list(super().__call__(images, computed)))
        temporary = path.with_suffix('.tmp.npy')
        np.save(temporary, vectors.astype(np.float32))
        temporary.rename(path)
        return vectors[:, _OF_ALL[views]] if computed == 'all' else vectors


def compare(photos: str, model: str, seed: int, each: int, output: Path) -> list[dict[str, Any]]:
    """Judges all methods on the same copies.

    Args:
      photos: the folder of the photos.
      model: source of the weights, see `Classifier.from_pretrained`.
      seed: see `judging.judge_copies`.
      each: see `judging.plan`.
      output: the folder of the finished rows and vectors.

    Returns:
      A row for each method: `method`, `seconds` of CPU time, and the figures.
    """
    classifier = Classifier.from_pretrained(model, classify=False)
    every, failed = judging.read_photos(search.named(classifier.run, photos), seed)
    for path, reason in failed.items():
        raise UserError(f'{path} cannot be read: {reason}')
    output.mkdir(parents=True, exist_ok=True)
    trials = judging.plan(len(every), seed, each)
    judge = _Judge(every, trials, seed, output / f'rows-{_digest(every)}-{seed}-{each}.jsonl')

    kept = output / 'vectors'
    kept.mkdir(exist_ok=True)
    mean = Kept(classifier, 'features', kept, f'{model}-mean-{seed}-{each}')
    gem = Kept(classifier, f'{_MAPS}:gem', kept, f'{model}-gem-{seed}-{each}')
    mean.whole = True
    judge(f'{model}', judging.by_vectors(mean))
    judge('thumbnails and vectors (`duplicates` until now)', _duplicates_until_now(mean))
    judge('thumbnails', _by_looks(lambda look: look.thumbnail))
    judge('imagehash', _by_hashes)
    judge('+ verification', judging.by_detector(mean))
    judge('+ GeM', judging.by_vectors(gem))
    judge('+ flip', judging.by_vectors(mean, 'flip'))
    judge('+ scales', judging.by_vectors(mean, 'scales'))
    judge('+ flip and scales', judging.by_vectors(mean, 'all'))
    for size in _WHITENED:
        judge(f'+ whitening to {size}', judging.by_vectors(mean, whiten=size))
    # The background of the judged trial is the collection of the other one.
    background = mean.index([every[i] for i in trials[0].collection])
    judge('+ score normalization', judging.by_vectors(mean, background=background))

    # The best of each option on the tuning photos, together.
    def tuned(names: Iterable[str]) -> str:
        return max(names, key=lambda name: judge.rows[name]['tuning_micro_ap'])

    size = max(
        (0, *_WHITENED),
        key=lambda n: judge.rows[f'+ whitening to {n}' if n else model]['tuning_micro_ap'],
    )
    views = max(VIEWS, key=lambda v: judge.rows[_VIEW_ROWS[v] or model]['tuning_micro_ap'])
    describe = gem if tuned([model, '+ GeM']) == '+ GeM' else mean
    describe.whole = views != 'one'
    background = describe.index([every[i] for i in trials[0].collection])
    normalized = tuned([model, '+ score normalization']) != model
    options = f'{"GeM" if describe is gem else "mean"}, {size or "no"} whitening, {views} views'
    judge(
        f'best options ({options}{", normalized" if normalized else ""})',
        judging.by_vectors(describe, views, size, background if normalized else None),
    )
    judge(f'best options ({options}) + verification', judging.by_detector(describe, views, size))
    floor = Kept(_at_random(classifier), 'features', kept, f'floor-{seed}-{each}')
    judge('ResNet-50 drawn at random', judging.by_vectors(floor))
    return list(judge.rows.values())


_VIEW_ROWS = {'one': '', 'flip': '+ flip', 'scales': '+ scales', 'all': '+ flip and scales'}


class _Judge:
    """Judges methods, and keeps their rows in a file."""

    def __init__(
        self, photos: Sequence[np.ndarray], trials: tuple[Trial, Trial], seed: int, path: Path
    ):
        self._photos, self._trials, self._seed, self._path = photos, trials, seed, path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.rows = {row['method']: row for row in map(json.loads, lines)}

    def __call__(self, name: str, method: Method) -> None:
        if name in self.rows:
            return
        start = time.process_time()
        pairs = [
            judging.answer(method, self._photos, trial, self._seed, name) for trial in self._trials
        ]
        _, threshold = rankings.recall_at_precision(pairs[0])
        row = {
            'method': name,
            'seconds': time.process_time() - start,
            'tuning_micro_ap': rankings.micro_ap(pairs[0]),
            'collection': len(self._trials[1].collection),
            'queries': len(self._trials[1].queries),
            **judging.figures(pairs[1], self._trials[1], threshold),
        }
        self.rows[name] = row
        with open(self._path, 'a') as file:
            file.write(json_text(row, indent=None) + '\n')
