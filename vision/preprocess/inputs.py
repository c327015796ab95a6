"""The loader, which puts batches on the device mesh.

Images in memory are preprocessed on the device if all ops can run there; this needs no TensorFlow
(`vision.preprocess.device`). All other sources use tf.data (`vision.preprocess.pipeline`).

A batch is a dict with

* `image`: uint8 or float32 [B, H, W, C], or [B, V, H, W, C] if `data.views` = V > 1;
* `label`: int32 [B], or float32 [B, K] if an image may have several labels;
* `id`: int32 [B];
* `mask`: float32 [B], 1 for an example and 0 for padding, whose id is −1 and whose label is 0.
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
    """True if a source is preprocessed on the device with these ops."""
    return ops_lib.place(ops, source.images is not None) == ops_lib.DEVICE


@dataclasses.dataclass(frozen=True)
class Loading:
    """Settings of the training loader.

    Attributes:
      ops: an op string.
      batch_size: size of the global batch.
      seed: seed of the order and the augmentation.
      repeats: number of views of an image in an epoch, which then shows fewer images.
      views: number of views of an image in an example.
      cache: none, raw or decoded.
      max_corrupt: fraction of the examples that may be unreadable.
    """

    ops: str
    batch_size: int
    seed: int
    repeats: int = 1
    views: int = 1
    cache: str = 'none'
    max_corrupt: float = 0.01


class TrainBatches:
    """Endless iterator of the global batches of steps `start_step`, `start_step` + 1, ….

    Attributes:
      split: the split on the devices if it is preprocessed there, or None.
    """

    def __init__(self, source: Source, loading: Loading, mesh: Mesh, start_step: int):
        """Opens the data at a step; no earlier images are decoded.

        Args:
          source: the training split.
          loading: settings of the loader.
          mesh: the mesh of all devices.
          start_step: number of finished steps.

        Raises:
          UserError: an op is unknown or cannot be applied to the images.
        """
        self._host: HostBatches | None = None
        self.split: DeviceSplit | None = None
        self._loading = loading
        # Keep the images on the device if all ops can run there.
        if on_device(source, loading.ops):
            self.split = DeviceSplit(source, loading.ops, loading.seed, mesh)
            self._batches = self.split.train_batches(
                loading.batch_size, loading.seed, start_step, loading.repeats, loading.views
            )
            return
        # Otherwise use the tf.data pipeline of this process, and transfer its batches in advance.
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
          UserError: too many images cannot be read. With several processes `check` raises it.
        """
        return next(self._batches)

    def rows(self, step: int, count: int, length: int) -> dict[str, np.ndarray]:
        """Returns what `split.gather` needs for the batches of `count` steps from step `step`.

        Returns:
          `id`, int32 [length, B], and `epoch`, int32 [length, B] or [length, B, V]. The rows after
          the first `count` are zeros.
        """
        assert self.split is not None
        of = self._loading
        sizes = of.batch_size, of.seed
        steps = range(step, step + count)
        rows = [self.split.train_rows(*sizes, i, of.repeats, of.views) for i in steps]
        found = {}
        for name, column in zip(('id', 'epoch'), zip(*rows, strict=True), strict=True):
            found[name] = np.zeros((length, *column[0].shape), np.int32)
            found[name][:count] = column
        return found

    def check(self) -> None:
        """Raises UserError on all processes if one of them could not read its data."""
        if self._host is not None:
            self._host.check()


def report(source: Source, loading: Loading) -> str:
    """Describes where the training ops run, and how much host memory `data.cache` will take."""
    place = f'preprocessing {ops_lib.describe_place(loading.ops, source.images is not None)}'
    if on_device(source, loading.ops) or loading.cache == 'none':
        return place
    from vision.preprocess import cache

    # Check the cache and estimate its size.
    cache.check(loading.cache, source)
    channels = ops_lib.channels(ops_lib.parse(loading.ops))
    return f'{place}; {cache.report(source, channels, loading.cache)}'


class EvalBatches:
    """Every example of a split once, in order, in batches on the mesh; can be iterated repeatedly.

    Attributes:
      corrupt: reasons for the images that could not be read in the last pass, by name.
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
          batch_size: examples per device, so that each device computes the same for any number of
            devices; the last batch is padded.
          mesh: the mesh of all devices.
          skip_corrupt: mask images that cannot be read, instead of raising UserError.
          max_corrupt: fraction of the split up to which such images are masked.
        """
        self.source, self.corrupt = source, dict[str, str]()
        self._ops, self._mesh = ops, mesh
        self._max_corrupt = 1.0 if skip_corrupt else max_corrupt
        self._batch_size = batch_size * mesh.size
        self._split = DeviceSplit(source, ops, 0, mesh) if on_device(source, ops) else None

    def __iter__(self) -> Iterator[Batch]:
        self.corrupt.clear()  # keep the same dict, which callers may hold
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
        # The pipeline fills this object's dict.
        batches.corrupt = self.corrupt
        read = host.HostBatches(batches, len(batches))
        yield from host.prefetch(read, self._mesh)
        read.check()
        # Each process has read a part of the split: merge their findings.
        for found in processes.share(self.corrupt):
            self.corrupt.update(found)

    def skipped(self) -> int:
        """The number of examples of the last pass that could not be read."""
        return count_named(self.source, self.corrupt)


def check(source: Source, ops: str) -> None:
    """Raises UserError if an op string is invalid, or an op cannot be used for the source."""
    ops_lib.parse(ops, ops_lib.place(ops, source.images is not None))


def input_shape(source: Source, ops: str) -> tuple[int, int, int]:
    """Returns the shape (H, W, C) of the model's input; may read one example."""
    if source.images is not None and on_device(source, ops):
        parsed = opstring.parse(ops)
        # Trace the ops without computing them.
        image = jax.eval_shape(
            lambda x: device.apply_ops(parsed, x, jax.random.key(0)), source.images[0]
        )
        return image.shape
    from vision.preprocess import pipeline

    # tf.data must preprocess one example.
    batch = next(iter(pipeline.eval_batches(source, ops, batch_size=1, skip_corrupt=True)))
    return tuple(batch['image'].shape[1:])


def examples(source: Source, ids: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Reads some examples of a split, and skips those that do not exist or cannot be read.

    Args:
      source: the split. If it is not indexed, it is read from its start, without decoding.
      ids: ids of the examples.

    Yields:
      Each id and its original image, uint8 [H, W, C].
    """
    from vision.preprocess.decode import read

    for example, image, _ in read_some(source, {i for i in ids if 0 <= i < source.num_examples}):
        try:
            if not isinstance(image, BadImage):
                yield example, read(image) if isinstance(image, bytes) else image
        except BadImage:
            continue
