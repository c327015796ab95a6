"""Sources in memory: scikit-learn's digits, synthetic images, and any arrays.

`array_files` has the sources that read arrays from files.
"""

import math
from collections.abc import Sequence

import numpy as np

from vision.core.errors import UserError, unknown
from vision.data.order import hash64, hold_out
from vision.data.source import ArraySource, as_labels

_MOST_CLASSES = 1_000_000


def digits(split: str) -> ArraySource:
    """Opens one split of scikit-learn's digits, 1,797 scans of 8 × 8 (Alpaydin and Kaynak 1998).

    The splits are fixed and stratified: train 1,077, validation 360, test 360.

    Returns:
      A source with images uint8 [N, 8, 8, 1]; 0 is paper, 255 is ink.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    # Hold out the test split first, then the validation split.
    rest, test = hold_out(data.target, 360)
    train, validation = hold_out(data.target[rest], 360)
    ids = {'train': rest[train], 'validation': rest[validation], 'test': test}
    check_split('digits', split, ids)
    return from_arrays(f'digits:{split}', images[ids[split]], data.target[ids[split]])


def synthetic(
    split: str,
    num_examples: int = 1024,
    num_classes: int = 10,
    image_size: int = 224,
    channels: int = 3,
) -> ArraySource:
    """Opens one split of synthetic images: noise and a bright square, whose position is the class.

    The images are meant for benchmarks and smoke tests. No two splits share an image.

    Returns:
      A source with images uint8 [num_examples, image_size, image_size, channels].
    """
    splits = ('train', 'validation', 'test')
    check_split('synthetic', split, splits)
    for key, value in (('num_examples', num_examples), ('num_classes', num_classes)):
        if value < 1:
            raise UserError(f'data.{key}={value} must be at least 1')
    # Divide the image into a grid with a cell for each class.
    side = math.ceil(math.sqrt(num_classes))
    cell = image_size // side
    if cell < 1:
        raise UserError(f'data.image_size={image_size} is too small for {num_classes} classes')
    # Labels are hashes of the ids, so that classes are balanced on average.
    labels = (hash64(splits.index(split), np.arange(num_examples)) % np.uint64(num_classes)).astype(
        np.int32
    )
    # Draw the noise, and brighten each image's cell.
    rng = np.random.default_rng(splits.index(split))
    shape = (num_examples, image_size, image_size, channels)
    images = rng.integers(0, 128, shape, dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = (label // side) * cell, (label % side) * cell
        image[top : top + cell, left : left + cell] += 100
    return from_arrays(
        f'synthetic:{split}', images, labels, tuple(f'square {i}' for i in range(num_classes))
    )


def from_arrays(
    name: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str] = ()
) -> ArraySource:
    """Checks arrays and returns a source that contains them.

    Args:
      name: the source's name, for messages.
      images: uint8 [N, H, W, C].
      labels: integers [N]; or floats 0 and 1 [N, K] for images with several labels.
      class_names: K names; if empty, the names are '0' … the largest label.

    Raises:
      UserError: an array has the wrong dtype or shape or no example, or a label has no name.
    """
    # Check each array, then that they match each other and the class names.
    check_finite(name, 'images', images)
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(
            f'{name}: images must be uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}'
        )
    check_labels(name, labels)
    if len(labels) != len(images):
        raise UserError(f'{name}: {len(images)} images, but {len(labels)} labels')
    if 0 in images.shape[1:]:
        raise UserError(f'{name}: images of shape {list(images.shape[1:])} have no pixels')
    if not len(labels):
        raise UserError(f'{name} has no examples')
    names = tuple(class_names) or number_names(labels)
    if labels.ndim == 2 and labels.shape[1] != len(names):
        raise UserError(
            f'{name}: labels {list(labels.shape)} do not match the {len(names)} classes'
        )
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= len(names)):
        raise UserError(
            f'{name}: labels go from {labels.min()} to {labels.max()}, '
            f'but there are {len(names)} classes'
        )
    return ArraySource(name, names, np.ascontiguousarray(images), as_labels(labels))


def check_finite(name: str, what: str, values: np.ndarray) -> None:
    """Raises UserError if a value is NaN or infinite."""
    if values.dtype.kind in 'fc' and not (finite := np.isfinite(values)).all():
        first = np.argwhere(~finite)[0]
        raise UserError(
            f'{name}: {finite.size - finite.sum():,} values of the {what} are not finite; the '
            f'first is {values[tuple(first)]} in example {first[0] if first.size else 0}'
        )


def check_labels(name: str, labels: np.ndarray) -> None:
    """Raises UserError unless labels are integers [N], or floats or booleans 0 and 1 [N, K]."""
    check_finite(name, 'labels', labels)
    several = labels.ndim == 2 and labels.dtype.kind in 'bf' and np.isin(labels, (0, 1)).all()
    if not several and (labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(
            f'{name}: labels must be integers [N], or floats 0 and 1 [N, K] for several labels '
            f'per image, not {labels.dtype} {list(labels.shape)}'
        )


def number_names(labels: np.ndarray) -> tuple[str, ...]:
    """Returns numbers as class names: '0' … the largest label."""
    if labels.ndim == 2:
        return tuple(map(str, range(labels.shape[1])))
    if labels.max(initial=0) >= _MOST_CLASSES:
        raise UserError(
            f'a label is {labels.max()}; labels must be 0 … number of classes - 1, '
            f'below {_MOST_CLASSES:,}'
        )
    return tuple(str(i) for i in range(int(labels.max(initial=0)) + 1))


def check_split(source: str, split: str, known: Sequence[str] | dict) -> None:
    """Raises UserError if a source has no split of that name."""
    if split not in known:
        raise unknown(f'split of {source}', split, known)
