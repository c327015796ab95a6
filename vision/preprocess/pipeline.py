"""The tf.data pipeline: from a source and an op string to batches of NumPy arrays on this host.

What a training batch holds and how its images are augmented are functions of (seed, step): see
`vision.data.order` and `vision.preprocess.draws`. TFRecord data sets are read in sequence; their
order is described in `vision.data.tfds_source`. Training, evaluation and prediction run the same
code on an image.
"""

import logging
import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.tf_cpu import tf_cpu
from vision.data.source import ArraySource, FileSource, RecordSource, Source, TFDSSource
from vision.preprocess import cache as cache_lib
from vision.preprocess import ops as ops_lib
from vision.preprocess import rows
from vision.preprocess.decode import BadImage, read
from vision.preprocess.draws import draw

Batch = dict[str, np.ndarray]

_AHEAD = 2  # batches prepared while one is used
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
        self._preprocess = _Preprocess(source, ops, local, seed, cache)
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
        self._preprocess = _Preprocess(source, ops, local, seed=0, cache='none')
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


class _Preprocess:
    """Runs an op string over rows, and says what was wrong with those that dropped out."""

    def __init__(self, source: Source, text: str, local: int, seed: int, cache: str):
        cache_lib.check(cache, source)
        self._source, self._text, self._local, self._seed = source, text, local, seed
        self._ops = ops_lib.parse(text)
        encoded = not isinstance(source, ArraySource)
        if encoded and (not self._ops or self._ops[0].name != 'decode'):
            raise UserError(f'{source.name} holds encoded images: {text!r} must begin with decode')
        self.channels = ops_lib.channels(self._ops)
        self._raw = cache_lib.RawCache(source.paths) if cache == 'raw' else None  # type: ignore
        self._decoded = cache_lib.DecodedCache(self.channels) if cache == 'decoded' else None
        self._function: Any = None

    def indexed(self, plan: Callable[[int], rows.Plan], steps: tuple[int, int]) -> Generator:
        """Batches of a source that can be indexed, as `rows.aligned` yields them."""
        assert not isinstance(self._source, TFDSSource)
        dataset = rows.indexed(self._source, plan, steps, self._seed, len(self._ops))
        return rows.aligned(self._run(dataset), self._local)

    def sequential(self, segments: Iterator[Any], repeats: int = 1) -> Generator:
        """Batches of records, data set by data set, as `rows.aligned` yields them."""
        errors: list[Exception] = []
        for records in segments:
            dataset = rows.sequential(
                records, self._local, self._seed, len(self._ops), errors.append, repeats
            )
            yield from rows.aligned(self._run(dataset), self._local)
            if errors:
                raise UserError(
                    f'{self._source.name}: its records cannot be read ({_first_line(errors[0])}); '
                    'remove the data set and prepare it again'
                )

    def padding(self) -> tuple[rows.Plan, np.ndarray, np.ndarray]:
        """A batch of nothing, for a host that has fewer examples than another."""
        plan = rows.Plan(np.full(self._local, -1), *np.zeros((2, self._local), np.int64))
        images = np.zeros((self._local, *self._image_shape()), np.uint8)
        return plan, np.arange(self._local), images

    def fill(
        self, plan: rows.Plan, slots: np.ndarray, images: np.ndarray, corrupt: dict[str, str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Puts images in their slots, tries what is missing once more, notes what stays so.

        Returns:
          Images [b, H, W, C], zeros where there is none, and the mask [b].
        """
        filled = np.zeros((self._local, *self._image_shape()), np.uint8)
        mask = np.zeros(self._local, np.float32)
        filled[slots], mask[slots] = images, 1
        draws = draw(self._seed, plan.epochs, plan.ids, len(self._ops))
        for slot in np.setdiff1d(np.arange(self._local), slots):
            name = self._name(plan.ids[slot])
            try:
                filled[slot] = self._again(plan.ids[slot], draws[slot], name)
                mask[slot] = 1
            except BadImage as e:
                if name not in corrupt:
                    logging.warning('%s: %s', name, e)
                corrupt[name] = str(e)
        return filled, mask

    def _name(self, example: int) -> str:
        if isinstance(self._source, FileSource):
            return self._source.paths[example]
        return f'{self._source.name}, example {example}'

    def _again(self, example: int, draws: np.ndarray, name: str) -> np.ndarray:
        """Reads an image with Pillow alone: either it says why it cannot, or here is the image."""
        tf = tf_cpu()
        if isinstance(self._source, ArraySource):
            image = self._source.images[example]
        elif isinstance(self._source, FileSource):
            image = read(read_file(name), self.channels)
        elif isinstance(self._source, RecordSource):
            image = read(self._source.read([example])[0][0], self.channels)
        else:
            raise BadImage('cannot be decoded, or is too small for the ops')
        try:
            return ops_lib.apply(self._ops, tf.constant(image), draws, decoded=True).numpy()
        except (tf.errors.OpError, ValueError) as e:
            raise UserError(f'{name}: {self._text!r} does not fit it: {_first_line(e)}') from None

    def _image_shape(self) -> tuple[int, ...]:
        return tuple(self._function.output_shapes)

    def _run(self, dataset: Any) -> Iterator[dict[str, np.ndarray]]:
        """Preprocesses rows in parallel; those that fail drop out."""
        tf = tf_cpu()
        threads = max(2, len(os.sched_getaffinity(0)))
        if self._function is None:
            self._function = self._trace(dataset.element_spec)

        def preprocess(row: dict[str, Any]) -> dict[str, Any]:
            image = tf.cond(
                row['id'] < 0,
                lambda: tf.zeros(self._image_shape(), tf.uint8),
                lambda: self._function(row['id'], row['data'], row['draws']),
            )
            return {'slot': row['slot'], 'plan': row['plan'], 'image': image}

        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.private_threadpool_size = threads
        dataset = dataset.map(preprocess, num_parallel_calls=threads, deterministic=True)
        dataset = dataset.ignore_errors().batch(self._local + 1).prefetch(_AHEAD)
        return dataset.with_options(options).as_numpy_iterator()

    def _trace(self, spec: dict[str, Any]) -> Any:
        tf = tf_cpu()
        traced = tf.function(self._example, autograph=False)
        try:
            function = traced.get_concrete_function(spec['id'], spec['data'], spec['draws'])
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as e:
            raise UserError(
                f'{self._text!r} does not fit the images of {self._source.name}: {_first_line(e)}'
            ) from e
        if not function.output_shapes.is_fully_defined():
            raise UserError(
                f'{self._text!r} makes images of more than one size; let it end in one: '
                'resize(H, W), central_crop(S), random_crop(S) or random_resized_crop(S)'
            )
        return function

    def _example(self, example: Any, data: Any, draws: Any) -> Any:
        """One image: id, path or bytes or pixels, and random numbers → uint8 [H, W, C]."""
        tf = tf_cpu()

        def encoded() -> Any:
            if self._raw is not None:
                return self._raw.read(example)
            return tf.io.read_file(data) if isinstance(self._source, FileSource) else data

        if isinstance(self._source, ArraySource):
            return ops_lib.apply(self._ops, data, draws)
        shape = self._source.image_shape if not isinstance(self._source, FileSource) else None
        if self._decoded is None and shape is None:
            return ops_lib.apply(self._ops, encoded(), draws)
        image = self._decode(example, encoded)
        image = image if shape is None else tf.ensure_shape(image, (*shape[:2], self.channels))
        return ops_lib.apply(self._ops, image, draws, decoded=True)

    def _decode(self, example: Any, encoded: Callable[[], Any]) -> Any:
        def decode() -> Any:
            return ops_lib.apply(self._ops[:1], encoded(), None)

        return decode() if self._decoded is None else self._decoded.get(example, decode)


def read_file(path: str) -> bytes:
    """Reads a file.

    Raises:
      BadImage: it cannot be read; the text says why.
    """
    try:
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError:
        raise BadImage('no such file') from None
    except PermissionError:
        raise BadImage('permission denied') from None
    except IsADirectoryError:
        raise BadImage('is a folder') from None
    except OSError as e:
        raise BadImage(e.strerror or 'cannot be read') from None
    except ValueError:  # a path that no file can have: with a zero byte in it
        raise BadImage('no such file') from None


def _first_line(error: Exception) -> str:
    """What an error says, without TensorFlow's names of nodes and ops around it."""
    return re.sub(r'\{\{.*?\}\}\s*|\s*\[(\[|Op).*', '', str(error).split('\n')[0])
