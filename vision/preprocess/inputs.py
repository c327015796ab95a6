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
from vision.core import processes
from vision.core.errors import UserError
from vision.data.source import ArraySource, Source, count_named
from vision.preprocess import device, opstring
from vision.preprocess import ops as ops_lib
from vision.preprocess.device import Batch, DeviceSplit

_AHEAD = 2  # batches that are on their way to the devices while one is being computed with


def on_device(source: Source, ops: str) -> TypeGuard[ArraySource]:
    """Whether this source is preprocessed on the device."""
    return ops_lib.place(ops, isinstance(source, ArraySource)) == ops_lib.DEVICE


class TrainBatches:
    """The global batches of steps `start_step`, `start_step` + 1, …, without end."""

    def __init__(self, source: Source, config: ConfigDict, mesh: Mesh, start_step: int):
        """Opens the data at that step; seeking costs no decoding.

        Args:
          source: the training split.
          config: the whole config.
          mesh: of all devices.
          start_step: how many steps were done.

        Raises:
          UserError: an op that is unknown or does not fit.
        """
        batch_size, seed = config.training.batch_size, config.seed
        repeats = config.data.get('repeats', 1)
        self._host: _HostBatches | None = None
        if on_device(source, config.preprocess.train):
            split = DeviceSplit(source, config.preprocess.train, seed, mesh)
            self._batches = split.train_batches(batch_size, seed, start_step, repeats)
            return
        from vision.preprocess import pipeline

        self._host = _HostBatches(
            pipeline.train_batches(
                source,
                config.preprocess.train,
                batch_size=batch_size,
                seed=seed,
                start_step=start_step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                cache=config.data.cache,
                max_corrupt=config.data.max_corrupt,
                repeats=repeats,
            )
        )
        self._batches = _prefetch(self._host, mesh)

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


def cache_report(source: Source, config: ConfigDict) -> str | None:
    """Says how much of the host's memory `data.cache` will take; None if it takes none."""
    ops = config.preprocess.train
    if on_device(source, ops) or config.data.cache == 'none':
        return None
    from vision.preprocess import cache

    cache.check(config.data.cache, source)
    return cache.report(source, ops_lib.channels(ops_lib.parse(ops)), config.data.cache)


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
        from vision.preprocess import pipeline

        batches = pipeline.eval_batches(
            self.source,
            self._ops,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            max_corrupt=self._max_corrupt,
        )
        batches.corrupt = self.corrupt
        host = _HostBatches(batches, len(batches))
        yield from _prefetch(host, self._mesh)
        host.check()
        for theirs in processes.share(self.corrupt):
            self.corrupt.update(theirs)

    def skipped(self) -> int:
        """How many examples of the last pass could not be read."""
        return count_named(self.source, self.corrupt)


def check(source: Source, ops: str) -> None:
    """Raises UserError if an op string is misspelt, or its ops do not exist or do not fit."""
    ops_lib.parse(ops, ops_lib.place(ops, isinstance(source, ArraySource)))


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


class _HostBatches:
    """This process's batches out of the host's pipeline.

    With several processes, one that cannot read its data must not stop alone, the others would wait
    for it in the next step: it goes on with batches of mask 0 until all call `check`.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], count: int | None = None):
        """Takes the pipeline, and how many batches all processes have of it (None: no end)."""
        self._batches, self._left = batches, count
        self._last: dict[str, np.ndarray] | None = None
        self._mistake: str | None = None

    def __iter__(self) -> '_HostBatches':
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if jax.process_count() == 1:
            return next(self._batches)
        if self._left is not None:
            if not self._left:
                raise StopIteration
            self._left -= 1
        if self._last is None:  # there is nothing yet to go on with
            self._last = processes.together(lambda: next(self._batches))
        elif self._mistake is None:
            try:
                self._last = next(self._batches)
            except UserError as e:
                self._mistake = str(e)
        if self._mistake is not None:
            self._last = self._last | {'mask': np.zeros_like(self._last['mask'])}
        return self._last

    def check(self) -> None:
        """Raises UserError, on all processes, if one of them could not read its data."""
        processes.raise_together(self._mistake)


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
