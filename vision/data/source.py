"""Sources: one named split of labelled images each, which answers for itself.

`Source` is the contract. Callers ask a source what it has and never what kind it is, so a class of a
user's own works wherever these do (docs/extending.md).
"""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vision.core.errors import UserError

_CHUNK = 256  # examples that are read at once where all are
_MARKED = 1000  # examples that are read for their labels, to remember a source by
_STATS = 16  # threads that ask for the sizes of files
_STATED = 1024  # files of which one asks in turn


class NoSplitError(UserError):
    """The source is in order, but it has no split of that name."""


class BadImage(ValueError):
    """An image that cannot be read; its text says why, in a few words."""


# An encoded image, or pixels uint8 [H, W, C].
Image = bytes | np.ndarray
Images = Sequence[Image] | np.ndarray
# Images, or in place of one the reason why there is none.
Found = Sequence[Image | BadImage] | np.ndarray
# Ids int64 [b], their images, and their labels [b] or [b, K].
Chunk = tuple[np.ndarray, Found, np.ndarray]


class Source:
    """One named split of labelled images; an example's id is its stable index, 0 … num_examples − 1.

    A subclass sets `name`, `class_names` and `num_examples`, and has `read`; the rest follows from
    them. One whose examples can only be read in order sets `indexed = False` and has `stream`.

    Attributes:
      name: where the examples come from, for messages: 'digits:train'.
      class_names: K names, in the order of the labels.
      num_examples: the number of examples in the split, N.
      multi_label: whether an image may have several labels, or none.
      image_shape: (H, W, C) of every image, or None where each has its own.
      encoded: whether images are bytes of an image file; if not they are pixels, uint8 of
        `image_shape`.
      indexed: whether examples can be read by their ids.
      paths: N paths where the images are files, which are then read in parallel; else None.
      images: uint8 [N, H, W, C] where all are in memory, and can be put on a device; else None.
    """

    name: str
    class_names: tuple[str, ...]
    num_examples: int
    multi_label: bool = False
    image_shape: tuple[int, ...] | None = None
    encoded: bool = True
    indexed: bool = True
    paths: tuple[str, ...] | None = None
    images: np.ndarray | None = None

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [N], each in 0 … K − 1; or float32 [N, K] of 0 and 1 with `multi_label`.

        By default every example is read for them, once.
        """
        return as_labels(np.concatenate([labels for _, _, labels in self.stream()]))

    def read(self, ids: Sequence[int]) -> tuple[Images, np.ndarray]:
        """Reads examples.

        Args:
          ids: b of them, each in 0 … N − 1.

        Returns:
          Their images, encoded or as pixels (see `encoded`), and labels [b] or [b, K].

        Raises:
          BadImage: one of them cannot be read; the text says why. The others are then read alone.
            Any other exception but UserError counts as the same.
        """
        raise NotImplementedError

    def stream(self, order: int | None = None, part: int = 0, parts: int = 1) -> Iterator[Chunk]:
        """Yields the examples one after another, in chunks of any size.

        Args:
          order: None for the order of the ids; else a number that decides how they are shuffled.
            Only sources that are not `indexed` are asked for it, or for a part.
          part: which of the parts, from 0: one for each host.
          parts: contiguous ranges of ids that differ by one example at most, the longer ones first.

        Raises:
          UserError: the data are damaged.
        """
        for start in range(0, self.num_examples, _CHUNK):
            ids = np.arange(start, min(start + _CHUNK, self.num_examples))
            yield ids, *read_each(self, ids)

    def name_of(self, example: int) -> str:
        """The name of an example in messages: its path if it has one."""
        return self.paths[example] if self.paths else f'{self.name}, example {example}'

    def identities(self) -> Iterator[tuple[str, str]]:
        """Yields what a run remembers its data by: for each example a name, and a mark that changes when it does.

        By default the names, without the folder that all paths share, and the labels; of a source that tells labels only
        by reading its examples, those of at most 1,000. A pair may stand for all examples, as a version does.
        """
        marks: dict[int, str] = {}
        if 'labels' in vars(self) or type(self).labels is not Source.labels:
            marks = dict(enumerate(map(_mark, self.labels)))
        elif self.indexed:
            some = np.unique(np.linspace(0, self.num_examples - 1, _MARKED).astype(int)).tolist()
            marks = dict(zip(some, map(_mark, read_each(self, some)[1]), strict=True))
        own_names = type(self).name_of is not Source.name_of
        names = _below(self.paths) if self.paths else None
        for i in range(self.num_examples):
            name = names[i] if names else self.name_of(i) if own_names else f'example {i}'
            yield name, f'label {marks[i]}' if i in marks else ''

    def subset(self, ids: Sequence[int] | np.ndarray) -> 'Source':
        """Some of the examples as a source, in that order."""
        return _Subset(self, np.asarray(ids, np.int64))


@dataclasses.dataclass(eq=False)
class ArraySource(Source):
    """Images that are in memory, all of one size: digits, IDX files, `.npz`, synthetic.

    Attributes:
      name: where the examples come from.
      class_names: K names, in the order of the labels.
      images: uint8 [N, H, W, C].
      labels: int32 [N], or float32 [N, K].
    """

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray = dataclasses.field()
    labels: np.ndarray = dataclasses.field()
    encoded = False

    def __post_init__(self) -> None:
        self.num_examples, self.image_shape = len(self.labels), self.images.shape[1:]
        self.multi_label = self.labels.ndim == 2

    def read(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 [b, H, W, C], and labels."""
        return self.images[ids], self.labels[ids]

    def identities(self) -> Iterator[tuple[str, str]]:
        """Yields the number of each example, and a digest of its pixels and label."""
        for i, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            found = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8)
            found.update(label.tobytes())
            yield f'example {i}', found.hexdigest()

    def subset(self, ids: Sequence[int] | np.ndarray) -> 'ArraySource':
        """Some of the examples, in memory."""
        return dataclasses.replace(self, images=self.images[ids], labels=self.labels[ids])


@dataclasses.dataclass(eq=False)
class FileSource(Source):
    """Encoded images on disk, of any size: folders and lists of files.

    Attributes:
      name: where the examples come from.
      class_names: K names, in the order of the labels.
      paths: N paths; absolute for a data set, as they were given for prediction.
      labels: int32 [N], or float32 [N, K]; −1 where there is no label (prediction).
    """

    name: str
    class_names: tuple[str, ...]
    paths: tuple[str, ...] = dataclasses.field()
    labels: np.ndarray = dataclasses.field()

    def __post_init__(self) -> None:
        self.num_examples, self.multi_label = len(self.paths), self.labels.ndim == 2

    def read(self, ids: Sequence[int]) -> tuple[list[bytes], np.ndarray]:
        """The files' bytes, and labels."""
        return [read_file(self.paths[i]) for i in ids], self.labels[ids]

    def identities(self) -> Iterator[tuple[str, str]]:
        """Yields the path of each file below the folder that all share, with its size and its label.

        So a folder may be moved.
        """
        chunks = [self.paths[i : i + _STATED] for i in range(0, len(self.paths), _STATED)]
        labels = map(_mark, self.labels) if self.multi_label else map(str, self.labels.tolist())
        with ThreadPoolExecutor(_STATS) as threads:
            sizes = itertools.chain.from_iterable(threads.map(_sizes, chunks))
            for name, size, label in zip(_below(self.paths), sizes, labels, strict=True):
                yield name, f'{size} bytes, label {label}'

    def subset(self, ids: Sequence[int] | np.ndarray) -> 'FileSource':
        """Some of the files."""
        return dataclasses.replace(
            self, paths=tuple(self.paths[i] for i in ids), labels=self.labels[ids]
        )


@dataclasses.dataclass(eq=False)
class _Subset(Source):
    """Some examples of a source, which go by their names there."""

    source: Source
    ids: np.ndarray

    def __post_init__(self) -> None:
        whole, self.num_examples = self.source, len(self.ids)
        self.name, self.class_names = whole.name, whole.class_names
        self.image_shape, self.encoded = whole.image_shape, whole.encoded
        self.multi_label = whole.multi_label
        if whole.paths is not None:
            self.paths = tuple(whole.paths[i] for i in self.ids)
        if whole.images is not None:
            self.images = whole.images[self.ids]

    def read(self, ids: Sequence[int]) -> tuple[Images, np.ndarray]:
        return self.source.read(self.ids[ids].tolist())

    def name_of(self, example: int) -> str:
        return self.source.name_of(int(self.ids[example]))

    def identities(self) -> Iterator[tuple[str, str]]:
        every = list(self.source.identities())
        if len(every) == self.source.num_examples:
            yield from (every[i] for i in self.ids)
        else:
            yield from every
            yield 'a part of it', hashlib.blake2b(self.ids.tobytes(), digest_size=8).hexdigest()


def _below(paths: Sequence[str]) -> list[str]:
    """The paths below the folder that all are in."""
    prefix = os.path.commonprefix([min(paths), max(paths)])  # noqa: RUF071 - cut at a slash below
    start = prefix.rfind('/') + 1
    return [path[start:] for path in paths]


def _sizes(paths: Sequence[str]) -> list[int]:
    """The sizes of files in bytes, −1 of one that is not there."""
    sizes = []
    for path in paths:
        try:
            sizes.append(os.stat(path).st_size)
        except (OSError, ValueError):
            sizes.append(-1)
    return sizes


def _mark(label: Any) -> str:
    return ' '.join(map(str, label_indices(label)))


def read_file(path: str) -> bytes:
    """Reads a file.

    Raises:
      BadImage: it cannot be read; the text says why.
    """
    try:
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        url = '; a URL is not fetched: download it' if '://' in path else ''
        raise BadImage(f'no such file{url}') from None
    except PermissionError:
        raise BadImage('permission denied') from None
    except IsADirectoryError:
        raise BadImage('is a folder') from None
    except OSError as e:
        raise BadImage(e.strerror or 'cannot be read') from None
    except ValueError:  # a path that no file can have: with a zero byte in it
        raise BadImage('no such file') from None


def read_each(source: Source, ids: Sequence[int] | np.ndarray) -> tuple[Found, np.ndarray]:
    """`source.read(ids)`, with the reason in place of each image that cannot be read.

    The label of such an image is 0, unless the source knows its labels without reading.
    """
    ids = [int(i) for i in ids]
    if not ids:
        return [], no_labels(source, 0)
    if len(ids) > 1:
        try:
            images, labels = source.read(ids)
            if len(images) == len(labels) == len(ids):
                return list(images), as_labels(labels)
        except UserError:
            raise
        except Exception:  # whatever a damaged file leads the reader to: see which one it is
            pass
    found: list[Image | BadImage] = []
    known = 'labels' in vars(source)
    every = source.labels[ids] if known else no_labels(source, len(ids))
    for position, example in enumerate(ids):
        try:
            (image,), labels = source.read([example])
            (every[position],) = as_labels(labels)
            found.append(image)
        except (UserError, NotImplementedError):
            raise
        except BadImage as e:
            found.append(e)
        except Exception as e:
            found.append(BadImage(f'{type(e).__name__}: {e}'.strip().split('\n')[0]))
    return found, every


def read_some(
    source: Source, ids: Iterable[int]
) -> Iterator[tuple[int, Image | BadImage, np.ndarray]]:
    """Yields some examples: id, image or why there is none, label.

    A source that is not indexed is read through, in the order of its ids, up to the last of them.
    """
    if source.indexed:
        for example in ids:
            (image,), (label,) = read_each(source, [example])
            yield example, image, label
        return
    wanted = set(ids)
    for chunk in source.stream() if wanted else ():
        for example, image, label in zip(*chunk, strict=True):
            if example in wanted:
                yield int(example), image, label
                wanted.remove(example)
        if not wanted:
            return


def as_labels(labels: np.ndarray) -> np.ndarray:
    """Labels in their type: int32 [N], or float32 [N, K].

    Raises:
      UserError: one of them is NaN or infinite.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind == 'f' and not np.isfinite(labels).all():
        wrong = labels[~np.isfinite(labels)][0]
        raise UserError(
            f'a label is {wrong}: labels must be numbers of classes, or 0 and 1 for each'
        )
    return labels.astype(np.float32 if labels.ndim == 2 else np.int32)


def no_labels(source: Source, count: int) -> np.ndarray:
    """The labels of padding: zeros int32 [count], or float32 [count, K]."""
    if source.multi_label:
        return np.zeros((count, len(source.class_names)), np.float32)
    return np.zeros(count, np.int32)


def multi_hot(labels: Sequence[Iterable[int]], num_classes: int) -> np.ndarray:
    """The classes of each of N images as float32 [N, num_classes], 1 where it has the class."""
    rows = np.zeros((len(labels), num_classes), np.float32)
    for row, classes in zip(rows, labels, strict=True):
        row[list(classes)] = 1
    return rows


def label_indices(label: Any) -> list[int]:
    """The classes of one example: of an int32 scalar, or of a multi-label row [K]."""
    return np.flatnonzero(label).tolist() if np.ndim(label) else [int(label)]


def label_text(class_names: Sequence[str], label: Any) -> str:
    """The names of an example's classes: 'cat', or 'cat, dog'; '' where it has none."""
    return ', '.join(class_names[i] for i in label_indices(label) if 0 <= i < len(class_names))


def count_named(source: Source, names: Collection[str]) -> int:
    """The number of examples that have one of these names: a list may repeat a file."""
    if source.paths is None or not names:
        return len(names)
    return sum(path in names for path in source.paths)
