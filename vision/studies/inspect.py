"""Inspection of a data set: classes, sizes, colours, duplicates, and suspicious images."""

import collections
import concurrent.futures
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from vision.core.errors import UserError
from vision.core.progress import track
from vision.data.source import BadImage, Image, Source, label_indices
from vision.prediction import pictures
from vision.prediction.classifier import Classifier
from vision.preprocess.decode import read
from vision.preprocess.pictures import to_rgb
from vision.studies import nearness

_THREADS = 4
# Pixels of the longer side at which sharpness and brightness are measured; about the size of a
# model's input.
_SIDE = 256
# Threshold on the mean squared Laplacian divided by the variance. This quotient was .06 to .8 for
# eight photographs, and less than .01 for the same photographs after a Gaussian blur with a
# standard deviation of 1/100 of their width.
_BLURRED = 0.01
_DARK = 40  # of 255: an image is dark if 99 % of its pixels are darker
_TINY = 32  # pixels: an image is tiny if its shorter side is smaller than this
ODDITIES = ('blank', 'blurred', 'dark', 'tiny')


class Seen(NamedTuple):
    """The properties of one example; `error` is the reason if the example cannot be read."""

    name: str
    labels: list[int]
    digest: bytes
    size: tuple[int, int] | None
    sums: np.ndarray | None  # sums of the values and of their squares, in 0 … 1: float64 [2, C]
    oddities: tuple[str, ...]  # some of ODDITIES
    thumbnail: np.ndarray | None  # `pictures.contrast`
    error: str | None


def describe(sources: dict[str, Source], classifier: Classifier | None = None) -> dict[str, Any]:
    """Reads every example of every split, with a progress bar on a terminal.

    Args:
      sources: the source of each split.
      classifier: describes the images by features, for near copies and outliers; by default they
        are compared by thumbnails.

    Returns:
      `{'splits': {split: …}, 'leakage': [[name, name], …], 'near': [[name, name, correlation], …],
      'compared': …}`. Leakage lists pairs of images with the same content in two splits, the
      earlier split first; `near` pairs of other images that are nearly the same, those of two
      splits first, among the images that were `compared` (see `nearness.compare`). Each split has:

      - `examples`: the number of examples.
      - `classes`: {class name: number of examples}.
      - `height`, `width`: [minimum, median, maximum].
      - `mean`, `std`: per channel, in 0 … 1.
      - `unreadable`: {name: reason}.
      - `copies`: [[name, …], …], groups of images with the same content.
      - `odd`: {'blank', 'blurred', 'dark' or 'tiny': [name, …]}; blank images have one colour.
      - `usual`: the kinds that apply to most images, which are therefore left out of `odd`.
      - `outliers`: {name: distance}, images that are far from all others, the farthest first.
    """
    if classifier is not None:
        for source in sources.values():
            if not source.indexed:
                raise UserError(
                    f'{source.name} can only be read in sequence, so its images cannot be compared '
                    'by features; leave out --workdir and --pretrained, or set data.in_memory'
                )
    splits, owners, leakage = dict[str, Any](), dict[bytes, tuple[str, str]](), []
    total = sum(source.num_examples for source in sources.values())
    step = max(1, -(-total // nearness.MOST))
    compared, vectors = list[nearness.Compared](), list[np.ndarray]()
    for split, source in sources.items():
        # Validation images may also serve as the test split; do not report them all as leakage.
        others = [sources[earlier] for earlier in splits if earlier != 'train']
        again = any((source.paths or source.name) == (o.paths or o.name) for o in others)
        seen, chosen = list[Seen](), list[int]()
        for example in track(_look_at_all(source), source.num_examples, f'reading {split}'):
            position, small = len(seen), example.thumbnail
            seen.append(example._replace(thumbnail=None))
            if example.digest:
                owner = owners.setdefault(example.digest, (split, example.name))
                if owner[0] != split and not again:
                    leakage.append([owner[1], example.name])
            if small is not None and position % step == 0 and not again:
                chosen.append(position)
                compared.append(nearness.Compared(example.name, split, example.digest, small))
        splits[split] = _summary(seen, source.class_names)
        if classifier is not None and chosen:
            vectors.append(_features(classifier, source, chosen))
    near, outliers = nearness.compare(compared, np.concatenate(vectors) if vectors else None)
    for split, summary in splits.items():
        summary['outliers'] = outliers.get(split, {})
    return {'splits': splits, 'leakage': leakage, 'near': near, 'compared': len(compared)}


def _features(classifier: Classifier, source: Source, chosen: list[int]) -> np.ndarray:
    """Returns the features of some examples, float32 [n, D]; 0 for those that fail."""
    found = np.zeros((len(chosen), classifier.embedding_size()), np.float32)
    for rows, vectors, _ in classifier.embed_source(source.subset(chosen)):
        found[rows] = vectors
    return found


def _summary(seen: list[Seen], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the entry of one split in the result of `describe`."""
    counts = collections.Counter(label for example in seen for label in example.labels)
    good = [example for example in seen if example.size and example.sums is not None]
    sizes = np.array([example.size for example in good]).reshape(-1, 2)
    # Mean and standard deviation over all pixels, from the sums of each image.
    pixels = sizes.prod(axis=1).sum()
    sums = sum((e.sums for e in good if e.sums is not None), np.zeros((2, 1)))
    mean, square = sums / max(pixels, 1)
    # Group images with the same content.
    by_digest: dict[bytes, list[str]] = {}
    for example in seen:
        if example.digest:
            by_digest.setdefault(example.digest, []).append(example.name)
    # A property of most images, such as a dark background, is not suspicious.
    odd = {kind: [e.name for e in good if kind in e.oddities] for kind in ODDITIES}
    usual = [kind for kind, names in odd.items() if len(names) > len(good) / 2]
    return {
        'examples': len(seen),
        'classes': {name: counts[label] for label, name in enumerate(class_names)},
        'height': _three(sizes[:, 0]),
        'width': _three(sizes[:, 1]),
        'mean': mean.tolist(),
        'std': np.sqrt(np.maximum(square - mean**2, 0)).tolist(),
        'unreadable': {example.name: example.error for example in seen if example.error},
        'copies': [names for names in by_digest.values() if len(names) > 1],
        'odd': {kind: names for kind, names in odd.items() if kind not in usual},
        'usual': usual,
    }


def _three(values: np.ndarray) -> list[int]:
    return [int(f(values)) for f in (np.min, np.median, np.max)] if len(values) else []


def _look_at_all(source: Source) -> Iterator[Seen]:
    """Yields the properties of each example, computed in threads, in order."""
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        for ids, images, labels in source.stream():
            names = [source.name_of(int(i)) for i in ids]
            yield from pool.map(_look_at, names, map(label_indices, labels), images)
    finally:
        # After an interrupt do not wait for images that are still queued.
        pool.shutdown(wait=False, cancel_futures=True)


def _look_at(name: str, labels: list[int], data: Image | BadImage) -> Seen:
    """Decodes one example and computes its properties."""
    digest = b''
    try:
        if isinstance(data, BadImage):
            raise data
        digest = hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).digest()
        image = read(data) if isinstance(data, bytes) else data
    except BadImage as e:
        return Seen(name, labels, digest, None, None, (), None, str(e))
    values = image.reshape(-1, image.shape[-1]) / 255
    sums = np.stack([values.sum(0), (values**2).sum(0)])
    odd, small = tuple(oddities(image)), pictures.contrast(image)
    return Seen(name, labels, digest, image.shape[:2], sums, odd, small, None)


def oddities(image: np.ndarray) -> Iterator[str]:
    """Yields the names of the `ODDITIES` that apply to an image, uint8 [H, W, C]."""
    from PIL import Image as pillow

    picture = pillow.fromarray(to_rgb(image)).convert('L')
    picture.thumbnail((_SIDE, _SIDE), pillow.Resampling.BOX)
    grey = np.asarray(picture, np.float32)
    if np.ptp(grey) < 2:
        yield 'blank'
    elif np.percentile(grey, 99) < _DARK:
        yield 'dark'
    elif min(grey.shape) >= _TINY:
        inner = grey[1:-1, 1:-1]
        # A blurred image has little high-frequency content compared with its contrast.
        laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
        if (laplacian**2).mean() < _BLURRED * grey.var():
            yield 'blurred'
    if min(image.shape[:2]) < _TINY:
        yield 'tiny'
