"""The interface of data sources, `Source`, and its implementations for arrays and image files.

A source is one split of a data set. Callers use only the interface and never check a source's
class, so a user-defined source works everywhere (docs/extending.md).
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.text import below

OF_SPLIT = re.compile(r'(train|validation|test):(\d+)')  # name of an example that is no file
_CHUNK = 256  # examples per chunk when all are read
_MARKED = 1000  # number of examples whose labels are read to identify a source
_STATS = 16  # threads that read file sizes
_STATED = 1024  # files per task of such a thread


class NoSplitError(UserError):
    """Raised when a source has no split of the requested name, but is otherwise valid."""


class BadImage(ValueError):
    """Raised for an image that cannot be read; the text is the reason in a few words."""


# An encoded image, or pixels uint8 [H, W, C].
Image = bytes | np.ndarray
Images = Sequence[Image] | np.ndarray
# Images, with a `BadImage` that holds the reason in place of each unreadable image.
Found = Sequence[Image | BadImage] | np.ndarray
# Ids int64 [b], their images, and their labels [b] or [b, K].
Chunk = tuple[np.ndarray, Found, np.ndarray]


class Source:
    """One split of a data set of labelled images.

    An example's id is its stable index, 0 … num_examples − 1. A subclass sets `name`, `class_names`
    and `num_examples`, and defines `read`. A subclass whose examples can only be read in order sets
    `indexed = False` and defines `stream` instead.

    Attributes:
      name: origin of the examples, for messages: 'digits:train'.
      class_names: K names in the order of the labels.
      num_examples: number N of examples in the split.
      multi_label: True if an image may have several labels, or none.
      image_shape: (H, W, C) of every image, or None if the images differ in shape.
      encoded: True if images are the bytes of image files; False if they are pixels, uint8 of
        `image_shape`.
      indexed: True if examples can be read by their ids.
      paths: N paths if the images are files, which are then read in parallel; otherwise None.
      images: uint8 [N, H, W, C] if all images are in memory, from where they can be put on a
        device; otherwise None.
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
        """Labels: int32 [N], each in 0 … K − 1, or with `multi_label` float32 [N, K] of 0 and 1.

        By default every example is read once to find the labels.
        """
        # Read every example. Sources that know their labels override this.
        return as_labels(np.concatenate([labels for _, _, labels in self.stream()]))

    def read(self, ids: Sequence[int]) -> tuple[Images, np.ndarray]:
        """Reads examples.

        Args:
          ids: b ids, each in 0 … N − 1.

        Returns:
          The images, encoded or as pixels (see `encoded`), and labels [b] or [b, K].

        Raises:
          BadImage: an image cannot be read; the text is the reason. The caller then reads the
            examples one by one. Exceptions other than UserError are treated in the same way.
        """
        raise NotImplementedError

    def stream(self, order: int | None = None, part: int = 0, parts: int = 1) -> Iterator[Chunk]:
        """Yields all examples in chunks of any size.

        Callers pass `order`, `part` and `parts` only to sources that are not `indexed`.

        Args:
          order: seed of the shuffled order; None for the order of the ids.
          part: number of the part to read, from 0; each host reads one.
          parts: number of parts, which are contiguous ranges of ids. Their sizes differ by at most
            one example, the larger ones first.

        Raises:
          UserError: the data are damaged.
        """
        for start in range(0, self.num_examples, _CHUNK):
            ids = np.arange(start, min(start + _CHUNK, self.num_examples))
            yield ids, *read_each(self, ids)

    def name_of(self, example: int) -> str:
        """Returns the name of an example for messages: its path if it has one."""
        return self.paths[example] if self.paths else f'{self.name}, example {example}'

    def identities(self) -> Iterator[tuple[str, str]]:
        """Yields a name and a mark for each example, from which a run detects changes of its data.

        A mark changes when its example changes. By default the names are paths relative to their
        common folder, and the marks are labels. If labels are known only by reading examples, at
        most 1,000 are read. A single pair, such as a version, may stand for all examples.
        """
        # Collect the labels that serve as marks.
        marks: dict[int, str] = {}
        if 'labels' in vars(self) or type(self).labels is not Source.labels:
            marks = dict(enumerate(map(_mark, self.labels)))
        elif self.indexed:
            some = np.unique(np.linspace(0, self.num_examples - 1, _MARKED).astype(int)).tolist()
            marks = dict(zip(some, map(_mark, read_each(self, some)[1]), strict=True))
        # Combine them with the names.
        own_names = type(self).name_of is not Source.name_of
        names = _below(self.paths) if self.paths else None
        for i in range(self.num_examples):
            name = names[i] if names else self.name_of(i) if own_names else f'example {i}'
            yield name, f'label {marks[i]}' if i in marks else ''

    def subset(self, ids: Sequence[int] | np.ndarray) -> 'Source':
        """Returns a source of some of the examples, in the order of `ids`.

        Raises:
          UserError: the examples can only be read in order.
        """
        if not self.indexed:
            raise UserError(
                f'{self.name} can only be read in order: single examples cannot be picked'
            )
        return _Subset(self, np.asarray(ids, np.int64))


@dataclasses.dataclass(eq=False)
class ArraySource(Source):
    """Images of one size in memory: digits, IDX files, `.npz`, synthetic.

    Attributes:
      name: origin of the examples.
      class_names: K names in the order of the labels.
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
        """Returns pixels uint8 [b, H, W, C] and labels."""
        return self.images[ids], self.labels[ids]

    def identities(self) -> Iterator[tuple[str, str]]:
        """Yields the number of each example and a digest of its pixels and label."""
        for i, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            found = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8)
            found.update(label.tobytes())
            yield f'example {i}', found.hexdigest()

    def subset(self, ids: Sequence[int] | np.ndarray) -> 'ArraySource':
        """Returns a source of some of the examples."""
        return dataclasses.replace(self, images=self.images[ids], labels=self.labels[ids])


@dataclasses.dataclass(eq=False)
class FileSource(Source):
    """Image files of any size: folders and lists.

    Attributes:
      name: origin of the examples.
      class_names: K names in the order of the labels.
      paths: N paths; absolute for a data set, as given by the caller for prediction.
      labels: int32 [N], or float32 [N, K]; −1 in prediction, where labels are unknown.
    """

    name: str
    class_names: tuple[str, ...]
    paths: tuple[str, ...] = dataclasses.field()
    labels: np.ndarray = dataclasses.field()

    def __post_init__(self) -> None:
        self.num_examples, self.multi_label = len(self.paths), self.labels.ndim == 2

    def read(self, ids: Sequence[int]) -> tuple[list[bytes], np.ndarray]:
        """Returns the bytes of the files and the labels."""
        return [read_file(self.paths[i]) for i in ids], self.labels[ids]

    def identities(self) -> Iterator[tuple[str, str]]:
        """Yields the path of each file, with its size and label as the mark.

        Paths are relative to the files' common folder, so a data set may be moved.
        """
        chunks = [self.paths[i : i + _STATED] for i in range(0, len(self.paths), _STATED)]
        labels = map(_mark, self.labels) if self.multi_label else map(str, self.labels.tolist())
        with ThreadPoolExecutor(_STATS) as threads:
            sizes = itertools.chain.from_iterable(threads.map(_sizes, chunks))
            for name, size, label in zip(_below(self.paths), sizes, labels, strict=True):
                yield name, f'{size} bytes, label {label}'

    def subset(self, ids: Sequence[int] | np.ndarray) -> 'FileSource':
        """Returns a source of some of the files."""
        return dataclasses.replace(
            self, paths=tuple(self.paths[i] for i in ids), labels=self.labels[ids]
        )


@dataclasses.dataclass(eq=False)
class _Subset(Source):
    """Some examples of another source, which keep their names."""

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
        # Reuse labels that are already known.
        if 'labels' in vars(whole) or type(whole).labels is not Source.labels:
            self.labels = whole.labels[self.ids]

    def read(self, ids: Sequence[int]) -> tuple[Images, np.ndarray]:
        return self.source.read(self.ids[ids].tolist())

    def name_of(self, example: int) -> str:
        return self.source.name_of(int(self.ids[example]))

    def identities(self) -> Iterator[tuple[str, str]]:
        # If one pair stands for the whole source, add a digest of the ids.
        every = list(self.source.identities())
        if len(every) == self.source.num_examples:
            yield from (every[i] for i in self.ids)
        else:
            yield from every
            yield 'a part of it', hashlib.blake2b(self.ids.tobytes(), digest_size=8).hexdigest()


def shown_name(name: str, root: str) -> str:
    """Returns an image's name for a list whose paths are relative to `root`.

    A file that is not below `root` has its absolute path. The names 'SPLIT:ID', and all names if
    `root` is '', are unchanged.
    """
    return name if not root or OF_SPLIT.fullmatch(name) else below(os.path.abspath(name), root)


def _below(paths: Sequence[str]) -> list[str]:
    """Returns the paths relative to their common folder."""
    prefix = os.path.commonprefix([min(paths), max(paths)])  # noqa: RUF071 - cut at a slash below
    # Cut the common prefix after its last slash.
    start = prefix.rfind('/') + 1
    return [path[start:] for path in paths]


def _sizes(paths: Sequence[str]) -> list[int]:
    """Returns the sizes of files in bytes, −1 for a missing file."""
    sizes = []
    for path in paths:
        try:
            sizes.append(os.stat(path).st_size)
        except (OSError, ValueError):
            sizes.append(-1)
    return sizes


def _mark(label: Any) -> str:
    """Returns the classes of an example as text: '3', or '0 5'."""
    return ' '.join(map(str, label_indices(label)))


def read_file(path: str) -> bytes:
    """Reads the bytes of a file.

    Raises:
      BadImage: the file cannot be read; the text is the reason.
    """
    try:
        with open(path, 'rb') as file:
            if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):  # /dev/zero has no end
                raise BadImage('is a device')
            return file.read()
    except FileNotFoundError:
        url = '; URLs are not fetched, download the image first' if '://' in path else ''
        raise BadImage(f'no such file{url}') from None
    except PermissionError:
        raise BadImage('permission denied') from None
    except IsADirectoryError:
        raise BadImage('is a folder') from None
    except OSError as e:
        raise BadImage(e.strerror or 'cannot be read') from None
    except BadImage:
        raise
    except ValueError:  # the path has a zero byte
        raise BadImage('no such file') from None


def read_each(source: Source, ids: Sequence[int] | np.ndarray) -> tuple[Found, np.ndarray]:
    """Reads examples, with a BadImage in place of each image that cannot be read.

    The label of an unreadable image is 0, unless the source knows its labels without reading.
    """
    # Try to read all examples at once.
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
        except Exception:  # some image is damaged: find out which one below
            pass
    # Read the examples one by one, and catch the errors of each.
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
    """Yields some examples as (id, image or BadImage, label).

    A source that is not indexed is read from the start up to the last of the ids, and its examples
    are yielded in the order of the split.
    """
    if source.indexed:
        for example in ids:
            (image,), (label,) = read_each(source, [example])
            yield example, image, label
        return
    # Read the stream until all ids are found.
    wanted = set(ids)
    for chunk in source.stream() if wanted else ():
        for example, image, label in zip(*chunk, strict=True):
            if example in wanted:
                yield int(example), image, label
                wanted.remove(example)
        if not wanted:
            return


def as_labels(labels: np.ndarray) -> np.ndarray:
    """Converts labels to int32 [N], or float32 [N, K].

    Raises:
      UserError: a label is NaN or infinite.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind == 'f' and not np.isfinite(labels).all():
        wrong = labels[~np.isfinite(labels)][0]
        raise UserError(
            f'a label is {wrong}; labels must be class numbers, or 0 and 1 for each class'
        )
    # Multi-label rows are float, class numbers int.
    return labels.astype(np.float32 if labels.ndim == 2 else np.int32)


def no_labels(source: Source, count: int) -> np.ndarray:
    """Returns labels for padding: zeros, int32 [count] or float32 [count, K]."""
    if source.multi_label:
        return np.zeros((count, len(source.class_names)), np.float32)
    return np.zeros(count, np.int32)


def multi_hot(labels: Sequence[Iterable[int]], num_classes: int) -> np.ndarray:
    """Encodes the classes of N images as float32 [N, num_classes] of 0 and 1."""
    rows = np.zeros((len(labels), num_classes), np.float32)
    for row, classes in zip(rows, labels, strict=True):
        row[list(classes)] = 1
    return rows


def label_indices(label: Any) -> list[int]:
    """Returns the classes of one example from an int32 scalar or a multi-label row [K]."""
    return np.flatnonzero(label).tolist() if np.ndim(label) else [int(label)]


def label_text(class_names: Sequence[str], label: Any) -> str:
    """Returns the names of an example's classes: 'cat', 'cat, dog', or '' if it has none."""
    return ', '.join(class_names[i] for i in label_indices(label) if 0 <= i < len(class_names))


def count_named(source: Source, names: Collection[str]) -> int:
    """Counts the examples that have one of these names; a list may name one file several times."""
    if source.paths is None or not names:
        return len(names)
    return sum(path in names for path in source.paths)
