"""The tf.data pipeline: from a source and an op string to batches of NumPy arrays on this host.

What a training batch holds and how its images are augmented are functions of (seed, step): see
`vision.data.order` and `vision.preprocess.draws`. TFRecord data sets are read in sequence; their
order is described in `vision.data.tfds_source`. Training, evaluation and prediction run the same
code on an image.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.data.source import Source, TFDSSource
from vision.preprocess import rows
from vision.preprocess.graph import Preprocess

Batch = dict[str, np.ndarray]

_FOREVER = 1 << 62  # steps


class TrainBatches:
    """An endless iterator of this host's part of each training batch.

    Attributes:
      corrupt: the examples that could not be read so far: name → reason.
    """

    def __init__(
        self,
        source: Source,
        ops: str,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        cache: str = 'none',
        max_corrupt: float = 0.01,
        repeats: int = 1,
    ):
        """See `train_batches`."""
        local = _local_size(batch_size, process_count)
        self._preprocess = Preprocess(source, ops, local, seed, cache)
        self._source, self._max_corrupt = source, max_corrupt
        self.corrupt: dict[str, str] = {}
        if isinstance(source, TFDSSource):
            from vision.data import tfds_source

            segments = tfds_source.train_segments(
                source, local, seed, start_step, process_index, process_count, repeats
            )
            self._steps = self._preprocess.sequential(segments, repeats)
        else:
            part = slice(process_index * local, (process_index + 1) * local)
            plan = rows.train_plan(source, seed, batch_size, part, repeats)
            self._steps = self._preprocess.indexed(plan, (start_step, _FOREVER))

    def __iter__(self) -> 'TrainBatches':
        return self

    def __next__(self) -> Batch:
        with _ended_by_error(self._steps):
            return self._next()

    def _next(self) -> Batch:
        plan, slots, images = next(self._steps)
        if len(slots) == len(plan.ids):
            return _batch(plan, images, np.ones(len(slots), np.float32))
        filled, mask = self._preprocess.fill(plan, slots, images, self.corrupt)
        check_corrupt(self.corrupt, self._source, self._max_corrupt)
        there = np.flatnonzero(mask)
        labels = plan.labels.copy()
        for slot in np.flatnonzero(mask == 0) if there.size else ():
            copied = there[slot % there.size]
            filled[slot], labels[slot] = filled[copied], labels[copied]
        return _batch(plan._replace(labels=labels), filled, mask)


class EvalBatches:
    """A finite iterator of this host's part of each evaluation batch, every example once.

    Attributes:
      corrupt: the examples that could not be read so far: name → reason.
    """

    def __init__(
        self,
        source: Source,
        ops: str,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        skip_corrupt: bool = False,
        max_corrupt: float = 0.0,
    ):
        """See `eval_batches`."""
        local = _local_size(batch_size, process_count)
        self._preprocess = Preprocess(source, ops, local, seed=0, cache='none')
        self._source = source
        self._max_corrupt = 1.0 if skip_corrupt else max_corrupt
        self.corrupt: dict[str, str] = {}
        if isinstance(source, TFDSSource):
            from vision.data import tfds_source

            records = tfds_source.eval_records(source, process_index, process_count)
            share = -(-source.num_examples // process_count)
            self._num_batches = -(-share // local)
            self._steps = self._preprocess.sequential(iter([records]))
        else:
            self._num_batches = -(-source.num_examples // batch_size)
            plan = rows.eval_plan(source, batch_size, process_index, process_count)
            self._steps = self._preprocess.indexed(plan, (0, self._num_batches))
        self._done = 0

    def __iter__(self) -> 'EvalBatches':
        return self

    def __len__(self) -> int:
        return self._num_batches

    def __next__(self) -> Batch:
        if self._done == self._num_batches:
            raise StopIteration
        self._done += 1
        with _ended_by_error(self._steps):
            return self._next()

    def _next(self) -> Batch:
        plan, slots, images = next(self._steps, None) or self._preprocess.padding()
        real = (plan.ids >= 0).astype(np.float32)
        if len(slots) == len(plan.ids):
            return _batch(plan, images, real)
        filled, mask = self._preprocess.fill(plan, slots, images, self.corrupt)
        if self.corrupt and not self._max_corrupt:
            name, reason = next(iter(self.corrupt.items()))
            raise UserError(
                f'{name}: {reason}. Mend or remove it, or leave such images out: --skip_corrupt.'
            )
        check_corrupt(self.corrupt, self._source, self._max_corrupt)
        return _batch(plan, filled, mask * real)


def check_corrupt(corrupt: dict[str, str], source: Source, max_corrupt: float) -> None:
    """Raises UserError if more than that fraction of a split's examples could not be read."""
    if len(corrupt) > max_corrupt * source.num_examples:
        name, reason = next(iter(corrupt.items()))
        raise UserError(
            f'{source.name}: {len(corrupt)} images of {source.num_examples:,} could not be read so '
            f'far, more than data.max_corrupt={max_corrupt:g} allows; the first is {name}: '
            f'{reason}. Mend or remove them, or raise data.max_corrupt.'
        )


def train_batches(source: Source, ops: str, **kwargs: Any) -> TrainBatches:
    """Yields this host's part of the training batches of steps start_step, start_step + 1, ….

    Args:
      source: the training split.
      ops: an op string that ends in images of one size.
      **kwargs: batch_size (global); seed; start_step: reached without decoding; process_index and
        process_count; cache: none, raw or decoded; max_corrupt: the fraction of the examples that
        may be unreadable; repeats: views of an example in an epoch.

    Returns:
      An iterator of `{'image': uint8 [b, H, W, C], 'label': int32 [b], 'id': int32 [b],
      'mask': float32 [b]}` with b = batch_size / process_count. The ids are those of
      `order.batch_ids`, of which host h has rows h·b … (h + 1)·b − 1. An image that cannot be
      read keeps its slot and id, with another one's pixels and label and mask 0.

    Raises:
      UserError: the op string does not fit; while iterating, more images than max_corrupt.
    """
    return TrainBatches(source, ops, **kwargs)


def eval_batches(source: Source, ops: str, **kwargs: Any) -> EvalBatches:
    """Yields this host's part of every example, once, in the order of the ids.

    Args:
      source: the split.
      ops: an op string that ends in images of one size.
      **kwargs: batch_size (global); process_index and process_count; skip_corrupt: give an image
        that cannot be read mask 0 and an entry in `corrupt`; max_corrupt: do so up to that
        fraction of the examples.

    Returns:
      An iterator as that of `train_batches`, of the same length on every host. Padding has id −1,
      label 0 and mask 0.

    Raises:
      UserError: the op string does not fit; while iterating, more images than that cannot be read.
    """
    return EvalBatches(source, ops, **kwargs)


def _local_size(batch_size: int, process_count: int) -> int:
    if batch_size <= 0 or batch_size % process_count:
        raise UserError(f'batch size {batch_size} cannot be shared by {process_count} hosts')
    return batch_size // process_count


@contextmanager
def _ended_by_error(steps: Generator) -> Iterator[None]:
    """Lets go of TensorFlow's iterator when its user is told of an error.

    The error's traceback would keep it until Python collects garbage. If that happens on one of the
    iterator's own threads, which run Python too, it waits for itself for ever.
    """
    try:
        yield
    except UserError:
        steps.close()
        raise


def _batch(plan: rows.Plan, images: np.ndarray, mask: np.ndarray) -> Batch:
    return {
        'image': images,
        'label': plan.labels.astype(np.int32),
        'id': plan.ids.astype(np.int32),
        'mask': mask,
    }
