"""What a source of labelled images is: one named split, its class names, and its examples.

Four kinds, by how the examples are reached. All of them have `name`, `class_names` and
`num_examples`, and an example's `id` is its stable index in the split, 0 … num_examples − 1.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError


class NoSplitError(UserError):
    """The source is in order, but it has no split of that name."""


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images that are in memory, all of one size: digits, IDX files, `.npz`, synthetic.

    Attributes:
      name: where the examples come from, for messages: 'digits:train'.
      class_names: K names, in the order of the labels.
      images: uint8 [N, H, W, C].
      labels: int32 [N], each in 0 … K − 1.
    """

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray

    @property
    def num_examples(self) -> int:
        """The number of examples in the split, N."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Encoded images on disk, of any size: folders and lists of files.

    Attributes:
      name: where the examples come from, for messages.
      class_names: K names, in the order of the labels.
      paths: N paths; absolute for a data set, as they were given for prediction.
      labels: int32 [N]; −1 where there is no label (prediction).
    """

    name: str
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    labels: np.ndarray

    @property
    def num_examples(self) -> int:
        """The number of examples in the split, N."""
        return len(self.paths)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource:
    """Encoded images that are read by their index: a TensorFlow data set in ArrayRecord files.

    Attributes:
      name: 'imagenet2012:train'.
      class_names: K names, in the order of the labels.
      records: N dicts `{'image': bytes, 'label': int}`, with `__getitem__`; `__getitems__`, where
        there is one, reads faster.
      image_shape: (H, W, C) of every image, or None where each has its own.
    """

    name: str
    class_names: tuple[str, ...]
    records: Any
    image_shape: tuple[int, int, int] | None

    @property
    def num_examples(self) -> int:
        """The number of examples in the split, N."""
        return len(self.records)

    @property
    def labels(self) -> np.ndarray:
        """Int32 [N]; reads every record."""
        every = self.read(range(self.num_examples))[1]
        return every.astype(np.int32)

    def read(self, ids: Sequence[int]) -> tuple[list[bytes], np.ndarray]:
        """Reads examples.

        Args:
          ids: b of them; −1 is none.

        Returns:
          The encoded images and the labels, int64 [b]; b'' and 0 where there is none, and where a
          record is damaged.
        """
        here = [int(i) for i in ids if i >= 0]
        try:
            found = list(self.records.__getitems__(here))
        except Exception:  # whatever a damaged file leads the reader to: see which records it is
            found = [self._read_one(i) for i in here]
        # Where its file was cut off, a record comes without its parts.
        examples = (e if None not in e.values() else _NOTHING for e in found)
        every = [next(examples) if i >= 0 else _NOTHING for i in ids]
        labels = np.array([example['label'] for example in every], np.int64)
        return [example['image'] for example in every], labels

    def _read_one(self, example: int) -> dict[str, Any]:
        try:
            return self.records[example]
        except Exception:
            return _NOTHING


_NOTHING: dict[str, Any] = {'image': b'', 'label': 0}


@dataclasses.dataclass(frozen=True, eq=False)
class TFDSSource:
    """A split of a TensorFlow data set in files that are read in sequence.

    Attributes:
      name: 'mnist:train[:55000]'.
      class_names: K names, in the order of the labels.
      builder: the `tfds.core.DatasetBuilder`, prepared.
      split: TFDS's name of the split, slices included.
      num_examples: the number of examples in the split.
      image_shape: (H, W, C) of every image, or None where each has its own.
    """

    name: str
    class_names: tuple[str, ...]
    builder: Any
    split: str
    num_examples: int
    image_shape: tuple[int, int, int] | None


Indexed = ArraySource | FileSource | RecordSource
Source = Indexed | TFDSSource


def count_named(source: Source, names: Collection[str]) -> int:
    """How many examples have one of these names, as messages give them: a list may repeat a file."""
    if isinstance(source, FileSource):
        return sum(path in names for path in source.paths)
    return len(names)
