"""Batches on the mesh, by whichever route a source and its op string allow.

Images in memory whose ops all run on the device go that way and need no TensorFlow
(`vision.preprocess.device`); everything else goes through tf.data (`vision.preprocess.pipeline`).
"""

import collections
import itertools
from collections.abc import Iterator
from typing import TypeGuard

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision.core import mesh as mesh_lib
from vision.data.source import ArraySource, Source
from vision.preprocess import device, opstring
from vision.preprocess.device import Batch, DeviceSplit

_AHEAD = 2  # batches that are on their way to the devices while one is being computed with


def on_device(source: Source, ops: str) -> TypeGuard[ArraySource]:
    """Whether this source is preprocessed on the device."""
    return isinstance(source, ArraySource) and device.can_run(ops)


def train_batches(
    source: Source, config: ConfigDict, mesh: Mesh, start_step: int
) -> Iterator[Batch]:
    """Yields the global batches of steps `start_step`, `start_step` + 1, …, without end.

    Args:
      source: the training split.
      config: the whole config.
      mesh: of all devices.
      start_step: how many steps were done; seeking costs no decoding.

    Raises:
      UserError: an op that is unknown or does not fit, or too many images that cannot be read.
    """
    batch_size = config.training.batch_size
    if on_device(source, config.preprocess.train):
        split = DeviceSplit(source, config.preprocess.train, config.seed, mesh)
        yield from split.train_batches(batch_size, config.seed, start_step)
        return
    from vision.preprocess import pipeline

    batches = pipeline.train_batches(
        source,
        config.preprocess.train,
        batch_size=batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        cache=config.data.cache,
        max_corrupt=config.data.max_corrupt,
    )
    yield from _prefetch(batches, mesh)


class EvalBatches:
    """Every example of a split once, in order, on the mesh; as often as it is iterated over.

    Attributes:
      corrupt: the images that could not be read in the last pass, by name, with the reason.
    """

    def __init__(
        self, source: Source, ops: str, batch_size: int, mesh: Mesh, skip_corrupt: bool = False
    ):
        """Prepares the split.

        Args:
          source: the split.
          ops: an op string.
          batch_size: for each device, so that what a device computes is the same however many
            there are; the last batch is padded.
          mesh: of all devices.
          skip_corrupt: mask images that cannot be read, instead of raising UserError.
        """
        self.source, self.corrupt = source, dict[str, str]()
        self._ops, self._mesh, self._skip_corrupt = ops, mesh, skip_corrupt
        self._batch_size = batch_size * mesh.size
        self._split = DeviceSplit(source, ops, 0, mesh) if on_device(source, ops) else None

    def __iter__(self) -> Iterator[Batch]:
        if self._split is not None:
            yield from self._split.eval_batches(self._batch_size)
            return
        from vision.preprocess import pipeline

        batches = pipeline.eval_batches(
            self.source,
            self._ops,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            skip_corrupt=self._skip_corrupt,
        )
        self.corrupt.clear()  # one dict over all passes: who was given it sees what comes
        batches.corrupt = self.corrupt
        yield from _prefetch(batches, self._mesh)


def check(source: Source, ops: str) -> None:
    """Raises UserError if an op string is misspelt, or its ops do not exist or do not fit."""
    if on_device(source, ops):
        opstring.check(opstring.parse(ops), device.DEVICE_OPS, skip=2)
        return
    from vision.preprocess import ops as host_ops

    host_ops.parse(ops)


def input_shape(source: Source, ops: str) -> tuple[int, int, int]:
    """Returns (H, W, C) of what the model is fed; reads one example where it must."""
    if on_device(source, ops):
        parsed = opstring.parse(ops)
        image = jax.eval_shape(
            lambda x: device.apply_ops(parsed, x, jax.random.key(0)), source.images[0]
        )
        return image.shape
    from vision.preprocess import pipeline

    batch = next(iter(pipeline.eval_batches(source, ops, batch_size=1, skip_corrupt=True)))
    return tuple(batch['image'].shape[1:])


def _prefetch(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[Batch]:
    """Keeps batches on their way to the devices."""
    on_their_way: collections.deque[Batch] = collections.deque()
    batches = iter(batches)
    while True:
        for batch in itertools.islice(batches, _AHEAD + 1 - len(on_their_way)):
            on_their_way.append(mesh_lib.put_batch(batch, mesh))
        if not on_their_way:
            return
        yield on_their_way.popleft()
