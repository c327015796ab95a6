"""The loader: batches on the mesh, by whichever route a source and its op string allow.

Images in memory whose ops all run on the device go that way and need no TensorFlow
(`vision.preprocess.device`); everything else goes through tf.data (`vision.preprocess.pipeline`).

A batch is `{'image', 'label', 'id', 'mask'}`: uint8 or float32 [B, H, W, C], and [B, V, H, W, C] where
`data.views` = V > 1; int32 [B], or float32 [B, K] where an image may have several labels; int32 [B];
float32 [B], 1 for an example and 0 (with id −1 and label 0) for padding.
"""

import dataclasses
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from vision.core import processes
from vision.data.source import BadImage, Source, count_named, read_some
from vision.preprocess import device, opstring
from vision.preprocess.device import Batch, DeviceSplit
from vision.preprocess.ops import registry as ops_lib

if TYPE_CHECKING:
    from vision.preprocess.host import HostBatches


def on_device(source: Source, ops: str) -> bool:
    """True if this source is preprocessed on the device."""
    return ops_lib.place(ops, source.images is not None) == ops_lib.DEVICE


@dataclasses.dataclass(frozen=True)
class Loading:
    """The settings by which a training split is fed.

    Attributes:
      ops: an op string.
      batch_size: of the global batch.
      seed: of the order and the augmentation.
      repeats: views of an image in an epoch, which then shows fewer images.
      views: of an image in an example.
      cache: none, raw or decoded.
      max_corrupt: the fraction of the examples that may be unreadable.
    """

    ops: str
    batch_size: int
    seed: int
    repeats: int = 1
    views: int = 1
    cache: str = 'none'
    max_corrupt: float = 0.01


class TrainBatches:
    """The global batches of steps `start_step`, `start_step` + 1, …, without end."""

    def __init__(self, source: Source, loading: Loading, mesh: Mesh, start_step: int):
        """Opens the data at that step; seeking costs no decoding.

        Args:
          source: the training split.
          loading: how it is fed.
          mesh: of all devices.
          start_step: how many steps were done.

        Raises:
          UserError: an op that is unknown or does not fit.
        """
        self._host: HostBatches | None = None
        if on_device(source, loading.ops):
            split = DeviceSplit(source, loading.ops, loading.seed, mesh)
            self._batches = split.train_batches(
                loading.batch_size, loading.seed, start_step, loading.repeats, loading.views
            )
            return
        from vision.preprocess import host, pipeline

        self._host = host.HostBatches(
            pipeline.train_batches(
                source,
                start_step=start_step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                **dataclasses.asdict(loading),
            )
        )
        self._batches = host.prefetch(self._host, mesh)

    def __iter__(self) -> 'TrainBatches':
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          UserError: too many images that cannot be read; with several processes `check` says so.
        """
        return next(self._batches)

    def check(self) -> None:
        """Raises UserError, on all processes, if one of them could not read its data."""
        if self._host is not None:
            self._host.check()


def report(source: Source, loading: Loading) -> str:
    """Says where the training op string runs, and how much of the host's memory `data.cache` will take."""
    place = f'preprocessing {ops_lib.describe_place(loading.ops, source.images is not None)}'
    if on_device(source, loading.ops) or loading.cache == 'none':
        return place
    from vision.preprocess import cache

    cache.check(loading.cache, source)
    channels = ops_lib.channels(ops_lib.parse(loading.ops))
    return f'{place}; {cache.report(source, channels, loading.cache)}'


class EvalBatches:
    """Every example of a split once, in order, on the mesh; as often as it is iterated over.

    Attributes:
      corrupt: the images that could not be read in the last pass, by name, with the reason.
    """

    def __init__(
        self,
        source: Source,
        ops: str,
        batch_size: int,
        mesh: Mesh,
        skip_corrupt: bool = False,
        max_corrupt: float = 0.0,
    ):
        """Prepares the split.

        Args:
          source: the split.
          ops: an op string.
          batch_size: for each device, so that what a device computes is the same however many
            there are; the last batch is padded.
          mesh: of all devices.
          skip_corrupt: mask images that cannot be read, instead of raising UserError.
          max_corrupt: mask them up to that fraction of the split.
        """
        self.source, self.corrupt = source, dict[str, str]()
        self._ops, self._mesh = ops, mesh
        self._max_corrupt = 1.0 if skip_corrupt else max_corrupt
        self._batch_size = batch_size * mesh.size
        self._split = DeviceSplit(source, ops, 0, mesh) if on_device(source, ops) else None

    def __iter__(self) -> Iterator[Batch]:
        self.corrupt.clear()  # one dict for all passes: whoever holds it sees what is added
        if self._split is not None:
            yield from self._split.eval_batches(self._batch_size)
            return
        from vision.preprocess import host, pipeline

        batches = pipeline.eval_batches(
            self.source,
            self._ops,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            max_corrupt=self._max_corrupt,
        )
        batches.corrupt = self.corrupt
        read = host.HostBatches(batches, len(batches))
        yield from host.prefetch(read, self._mesh)
        read.check()
        for theirs in processes.share(self.corrupt):
            self.corrupt.update(theirs)

    def skipped(self) -> int:
        """The number of examples of the last pass that could not be read."""
        return count_named(self.source, self.corrupt)


def check(source: Source, ops: str) -> None:
    """Raises UserError if an op string is misspelt, or its ops do not exist or do not fit."""
    ops_lib.parse(ops, ops_lib.place(ops, source.images is not None))


def input_shape(source: Source, ops: str) -> tuple[int, int, int]:
    """Returns (H, W, C) of what the model is fed; reads one example where it must."""
    if source.images is not None and on_device(source, ops):
        parsed = opstring.parse(ops)
        image = jax.eval_shape(
            lambda x: device.apply_ops(parsed, x, jax.random.key(0)), source.images[0]
        )
        return image.shape
    from vision.preprocess import pipeline

    batch = next(iter(pipeline.eval_batches(source, ops, batch_size=1, skip_corrupt=True)))
    return tuple(batch['image'].shape[1:])


def examples(source: Source, ids: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Reads some examples of a split; what is not there or cannot be read is left out.

    Args:
      source: the split.
      ids: of the examples. A source that is not indexed is read through for them, undecoded.

    Yields:
      Each id and its image, uint8 [H, W, C], as it is in the source.
    """
    from vision.preprocess.decode import read

    for example, image, _ in read_some(source, {i for i in ids if 0 <= i < source.num_examples}):
        try:
            if not isinstance(image, BadImage):
                yield example, read(image) if isinstance(image, bytes) else image
        except BadImage:
            continue
