"""What a source of labelled images is: one named split, its class names, and its examples.

Three kinds, by how the examples are reached. All of them have `name`, `class_names` and
`num_examples`, and an example's `id` is its stable index in the split, 0 … num_examples − 1.
"""

import dataclasses
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
class TFDSSource:
    """A split of a TensorFlow data set.

    Attributes:
      name: 'mnist:train[:55000]'.
      class_names: K names, in the order of the labels.
      builder: the `tfds.core.DatasetBuilder`, prepared.
      split: TFDS's name of the split, slices included.
      num_examples: the number of examples in the split.
    """

    name: str
    class_names: tuple[str, ...]
    builder: Any
    split: str
    num_examples: int


Source = ArraySource | FileSource | TFDSSource
