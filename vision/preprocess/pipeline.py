"""The tf.data pipeline, which makes batches of NumPy arrays on this host.

The examples of a training batch and their augmentation depend only on seed and step
(`vision.data.order`, `vision.preprocess.ops`). Sources that are not indexed (TFRecord data sets)
are read in sequence, in the order that `vision.data.tfds_source` describes. Training, evaluation
and prediction preprocess an image with the same code.
"""

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.data.order import apart, batch_ids, eval_ids, hash64
from vision.data.source import BadImage, Image, Source, as_labels
from vision.preprocess.graph import Plan, Planned, Preprocess, look_up, padding
from vision.preprocess.unreadable import check_corrupt

Batch = dict[str, np.ndarray]

_FEW = 64  # up to this number of images, building a tf.data dataset takes longer than it saves

# An example: id, epoch or view number from `order.batch_ids`, image, label.
_Read = tuple[int, int, Image | BadImage, np.ndarray]


class TrainBatches:
    """Endless iterator of this host's part of each training batch.

    Attributes:
      corrupt: reasons for the examples that could not be read so far, by name.
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
        views: int = 1,
    ):
        """Takes the arguments of `train_batches`."""
        local = _local_size(batch_size, process_count)
        self._preprocess = Preprocess(source, ops, local, seed, cache, views)
        self._source, self._max_corrupt = source, max_corrupt
        self.corrupt: dict[str, str] = {}
        # Plan the batches: compute their ids, or read the stream from the current epoch on.
        if source.indexed:
            own = slice(process_index * local, (process_index + 1) * local)
            steps = itertools.count(start_step)
            whole = (batch_ids(seed, source.num_examples, batch_size, i, repeats) for i in steps)
            planned = look_up(source, ((ids[own], epochs[own]) for ids, epochs in whole))
        else:
            part = (process_index, process_count)
            examples = _endless(source, seed, start_step * local, *part, repeats)
            planned = _in_batches(source, examples, local, repeats)
        # Preprocess the planned batches in the background.
        self._steps = self._preprocess.batches(planned)

    def __iter__(self) -> 'TrainBatches':
        return self

    def __next__(self) -> Batch:
        with _ended_by_error(self._steps):
            return self._next()

    def _next(self) -> Batch:
        # The usual case: all images are valid.
        plan, slots, images = next(self._steps)
        if len(slots) == len(plan.ids):
            return _batch(plan, images, np.ones(len(slots), np.float32))
        # Some images failed. Replace each by a copy of another one of the batch, with mask 0.
        filled, mask = self._preprocess.fill(plan, slots, images, self.corrupt)
        check_corrupt(self.corrupt, self._source, self._max_corrupt)
        there = np.flatnonzero(mask)
        labels = plan.labels.copy()
        for slot in np.flatnonzero(mask == 0) if there.size else ():
            copied = there[slot % there.size]
            filled[slot], labels[slot] = filled[copied], labels[copied]
        return _batch(plan._replace(labels=labels), filled, mask)


class EvalBatches:
    """Iterator of this host's part of each evaluation batch, with every example once.

    Attributes:
      corrupt: reasons for the examples that could not be read so far, by name.
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
        """Takes the arguments of `eval_batches`."""
        local = _local_size(batch_size, process_count)
        self._preprocess = Preprocess(source, ops, local, seed=0)
        self._source, self._local = source, local
        self._max_corrupt = 1.0 if skip_corrupt else max_corrupt
        self.corrupt: dict[str, str] = {}
        part = (process_index, process_count)
        # Plan the batches, each host for its own slots.
        if source.indexed:
            self._num_batches = -(-source.num_examples // batch_size)
            steps, epochs = range(self._num_batches), np.zeros(local, int)
            own = (eval_ids(source.num_examples, batch_size, step, *part) for step in steps)
            planned = look_up(source, ((ids, epochs) for ids in own))
        else:
            self._num_batches = -(-_share(source, 0, process_count) // local)
            planned = _in_batches(source, _pass(source, None, 0, *part), local)
        # For few images, or if encoded images and pixels are mixed, do not use tf.data.
        several_kinds = not source.encoded and source.image_shape is None
        few = several_kinds or source.num_examples <= _FEW
        self._steps = (self._preprocess.direct if few else self._preprocess.batches)(planned)
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
        # A host whose examples end early continues with padding.
        nothing = padding(self._source, self._local), np.empty(0, int), np.empty(0, np.uint8)
        plan, slots, images = next(self._steps, nothing)
        if len(slots) == len(plan.ids):
            return _batch(plan, images, np.ones(len(slots), np.float32))
        filled, mask = self._preprocess.fill(
            plan, slots, images, self.corrupt, warn=0 < self._max_corrupt < 1
        )
        if self.corrupt and not self._max_corrupt:
            name, reason = next(iter(self.corrupt.items()))
            raise UserError(
                f'{name}: {reason}. Skip such images with --skip_corrupt, or repair or remove the '
                'image if no run was trained on these data.'
            )
        check_corrupt(self.corrupt, self._source, self._max_corrupt)
        return _batch(plan, filled, mask)


def train_batches(source: Source, ops: str, **kwargs: Any) -> TrainBatches:
    """Yields this host's part of the training batches of steps start_step, start_step + 1, ….

    Args:
      source: the training split.
      ops: an op string whose images have one size.
      **kwargs: `batch_size` (global); `seed`; `start_step` (no earlier images are decoded);
        `process_index` and `process_count`; `cache` (none, raw or decoded); `max_corrupt`, the
        fraction of the examples that may be unreadable; `repeats`, the number of views of an
        example in an epoch; `views`, the number V of views of an image in an example.

    Returns:
      An iterator of `{'image': uint8 [b, H, W, C], 'label': int32 [b], 'id': int32 [b],
      'mask': float32 [b]}` with b = batch_size / process_count. With several labels per image the
      labels are float32 [b, K]; with V > 1 views the images are uint8 [b, V, H, W, C]. The ids are
      those of `order.batch_ids`; host h gets rows h·b … (h + 1)·b − 1. An image that cannot be read
      keeps its slot and id, with the pixels and label of another example and mask 0.

    Raises:
      UserError: the op string cannot be applied; while iterating, more images than `max_corrupt`
        cannot be read.
    """
    return TrainBatches(source, ops, **kwargs)


def eval_batches(source: Source, ops: str, **kwargs: Any) -> EvalBatches:
    """Yields this host's part of the evaluation batches, each example once, in order of the ids.

    Args:
      source: the split.
      ops: an op string whose images have one size.
      **kwargs: `batch_size` (global); `process_index` and `process_count`; `skip_corrupt`, which
        gives unreadable images mask 0 and an entry in `corrupt`; `max_corrupt`, the fraction of the
        examples up to which unreadable images are treated in this way.

    Returns:
      An iterator like that of `train_batches`, of the same length on every host. Padding has id −1,
      label 0 and mask 0.

    Raises:
      UserError: the op string cannot be applied; while iterating, more images than allowed cannot
        be read.
    """
    return EvalBatches(source, ops, **kwargs)


def _local_size(batch_size: int, process_count: int) -> int:
    """Returns the number of examples in a host's part of a batch."""
    if batch_size <= 0 or batch_size % process_count:
        raise UserError(
            f'batch size {batch_size} cannot be shared equally by {process_count} hosts; '
            f'use a multiple of {process_count}'
        )
    return batch_size // process_count


@contextmanager
def _ended_by_error(steps: Generator) -> Iterator[None]:
    """Closes TensorFlow's iterator when a UserError is raised.

    The error's traceback would otherwise keep the iterator alive until Python collects garbage. If
    one of the iterator's own threads collected it, this thread would wait for itself forever.
    """
    try:
        yield
    except UserError:
        steps.close()
        raise


def _share(source: Source, part: int, parts: int) -> int:
    """Returns the number of examples in a host's part of a source that is read in sequence."""
    return source.num_examples // parts + (part < source.num_examples % parts)


def _pass(source: Source, order: int | None, epoch: int, part: int, parts: int) -> Iterator[_Read]:
    """Yields a host's part of the split once; raises UserError if examples are missing."""
    count = 0
    for chunk in source.stream(order, part, parts):
        for example, image, label in zip(*chunk, strict=True):
            yield int(example), epoch, image, label
            count += 1
    # Damaged files may end the stream early.
    if count != (size := _share(source, part, parts)):
        raise UserError(f'{source.name}: only {count} of {size} examples could be read')


def _endless(
    source: Source, seed: int, position: int, part: int, parts: int, repeats: int
) -> Iterator[_Read]:
    """Yields a host's examples epoch after epoch without end, starting at a position.

    Args:
      source: the split, which is not indexed.
      seed: seed of the run.
      position: number of examples before the first one; those of its epoch are read and skipped.
      part: number of this host.
      parts: number of hosts.
      repeats: number of repetitions of an example in an epoch, which then shows fewer examples.
    """
    size = _share(source, part, parts)
    if size == 0:
        raise UserError(f'{source.name} has fewer examples than there are hosts')
    for epoch in itertools.count(position // size):
        # Each epoch and host has its own order.
        order = int(hash64(seed, epoch, part, parts) >> np.uint64(33))
        repeated = (
            (example, epoch * repeats + again, image, label)
            for example, _, image, label in _pass(source, order, epoch, part, parts)
            for again in range(repeats)
        )
        # Skip examples before the position in the first epoch.
        yield from itertools.islice(repeated, max(position - epoch * size, 0), size)


def _in_batches(
    source: Source, examples: Iterator[_Read], local: int, repeats: int = 1
) -> Iterator[Planned]:
    """Groups a stream of examples into batches, and pads the last one.

    Repeats of an example are spread over the batch (`order.apart`).
    """
    while batch := list(itertools.islice(examples, local)):
        batch = [batch[i] for i in apart(len(batch), repeats)]
        ids, epochs, images, labels = zip(*batch, strict=True)
        # Fill the slots, and leave the rest as padding.
        plan, missing = padding(source, local), local - len(batch)
        plan.ids[: len(batch)], plan.epochs[: len(batch)] = ids, epochs
        plan.labels[: len(batch)] = as_labels(np.stack(labels))
        yield Planned(plan, [*images, *[None] * missing])


def _batch(plan: Plan, images: np.ndarray, mask: np.ndarray) -> Batch:
    """Returns a batch as a dict of arrays."""
    return {
        'image': images,
        'label': plan.labels,
        'id': plan.ids.astype(np.int32),
        'mask': mask,
    }
