"""What is in a data set: classes, sizes, colours, images that cannot be read, duplicates."""

import collections
import concurrent.futures
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from vision.data.source import BadImage, Image, Source, label_indices
from vision.preprocess.decode import read

_THREADS = 4


class Seen(NamedTuple):
    """One example, looked at: `error` is why it could not be read, and then the rest is empty."""

    name: str
    labels: list[int]
    digest: bytes
    size: tuple[int, int] | None
    sums: np.ndarray | None  # of the channels and of their squares, in 0 … 1: float64 [2, C]
    error: str | None


def describe(sources: dict[str, Source]) -> dict[str, Any]:
    """Looks at every example of every split.

    Args:
      sources: split → source.

    Returns:
      `{'splits': {split: {'examples', 'classes': {name: count}, 'height' and 'width':
      [least, median, greatest], 'mean' and 'std' per channel in 0 … 1, 'unreadable':
      {name: reason}}}, 'leakage': [[name of one split, name of another], …]}`, with leakage the
      images of a split whose content is in an earlier split too.
    """
    splits, owners, leakage = {}, dict[bytes, tuple[str, str]](), []
    for split, source in sources.items():
        seen = []
        for example in _look_at_all(source):
            seen.append(example)
            if example.digest:
                owner = owners.setdefault(example.digest, (split, example.name))
                # One that is in both by its name is there because two splits are the same.
                if owner[0] != split and owner[1] != example.name:
                    leakage.append([owner[1], example.name])
        splits[split] = _summary(seen, source.class_names)
    return {'splits': splits, 'leakage': leakage}


def _summary(seen: list[Seen], class_names: tuple[str, ...]) -> dict[str, Any]:
    counts = collections.Counter(label for example in seen for label in example.labels)
    good = [example for example in seen if example.size and example.sums is not None]
    sizes = np.array([example.size for example in good]).reshape(-1, 2)
    pixels = sizes.prod(axis=1).sum()
    sums = sum((e.sums for e in good if e.sums is not None), np.zeros((2, 1)))
    mean, square = sums / max(pixels, 1)
    return {
        'examples': len(seen),
        'classes': {name: counts[label] for label, name in enumerate(class_names)},
        'height': _three(sizes[:, 0]),
        'width': _three(sizes[:, 1]),
        'mean': mean.tolist(),
        'std': np.sqrt(np.maximum(square - mean**2, 0)).tolist(),
        'unreadable': {example.name: example.error for example in seen if example.error},
    }


def _three(values: np.ndarray) -> list[int]:
    return [int(f(values)) for f in (np.min, np.median, np.max)] if len(values) else []


def _look_at_all(source: Source) -> Iterator[Seen]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for ids, images, labels in source.stream():
            names = [source.name_of(int(i)) for i in ids]
            yield from pool.map(_look_at, names, map(label_indices, labels), images)


def _look_at(name: str, labels: list[int], data: Image | BadImage) -> Seen:
    digest = b''
    try:
        if isinstance(data, BadImage):
            raise data
        digest = hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).digest()
        image = read(data) if isinstance(data, bytes) else data
    except BadImage as e:
        return Seen(name, labels, digest, None, None, str(e))
    values = image.reshape(-1, image.shape[-1]) / 255
    sums = np.stack([values.sum(0), (values**2).sum(0)])
    return Seen(name, labels, digest, image.shape[:2], sums, None)
