"""The host's tf.data graph, which preprocesses images in parallel, and its handling of failures.

The input of the graph is a stream of rows. Each row has the image for one slot (position) of one
batch. The rows of a batch are followed by a tick, a row without an image that marks the end of the
batch. tf.data drops each row whose image fails. The slot numbers and ticks show which rows are
missing, so that all other images keep their slots. Images that do not fail take no extra time.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vision.core.errors import UserError
from vision.core.startup import available_cpus, first_line, tf_cpu
from vision.data.files import is_path
from vision.data.order import view_counters
from vision.data.source import BadImage, Image, Source, no_labels, read_each, read_file
from vision.preprocess import cache as cache_lib
from vision.preprocess.decode import read
from vision.preprocess.example import Example
from vision.preprocess.ops import in_numpy, on_host
from vision.preprocess.ops import registry as ops_lib

_AHEAD = 2  # batches that are prepared in advance
_FOREVER = 1 << 62  # number of batches, larger than that of any run


class Plan(NamedTuple):
    """The examples in one host's part of a batch.

    Attributes:
      ids: int64 [b]; −1 for padding.
      epochs: int64 [b]; with repeated augmentation the view numbers from `order.batch_ids`.
      labels: int32 [b], or float32 [b, K]; 0 for padding.
    """

    ids: np.ndarray
    epochs: np.ndarray
    labels: np.ndarray


class Planned(NamedTuple):
    """A batch before preprocessing: its plan and the image of each slot.

    An image is a path, encoded bytes or pixels. A slot without an image has a `BadImage` or None.
    """

    plan: Plan
    images: Sequence[str | Image | BadImage | None]


def padding(source: Source, count: int) -> Plan:
    """Returns the plan of a batch that is all padding."""
    return Plan(np.full(count, -1), np.zeros(count, np.int64), no_labels(source, count))


def look_up(source: Source, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Planned]:
    """Reads the images of batches from an indexed source.

    Files are given by their paths, and read in the graph.

    Args:
      source: the source of the examples.
      batches: ids and epochs of each batch, int64 [b].
    """
    for ids, epochs in batches:
        real = np.flatnonzero(ids >= 0)
        # Slots with id −1 stay empty.
        plan = padding(source, len(ids))._replace(ids=ids, epochs=epochs)
        images: list[Any] = [None] * len(ids)
        if source.paths is not None:
            # With './' before a path, TensorFlow does not read a name such as gs://… as a URL.
            paths = [os.path.join(os.curdir, source.paths[i]) for i in ids[real]]
            found: Any = [p if is_path(p) else BadImage('no such file') for p in paths]
            labels = source.labels[ids[real]]
        else:
            found, labels = read_each(source, ids[real])
        plan.labels[real] = labels
        for slot, image in zip(real, found, strict=True):
            images[slot] = image
        yield Planned(plan, images)


class Preprocess:
    """Applies an op string to batches, and finds the reasons why images fail."""

    def __init__(
        self, source: Source, text: str, local: int, seed: int, cache: str = 'none', views: int = 1
    ):
        """Checks that the ops and the cache suit the source.

        Args:
          source: the source of the images.
          text: the op string.
          local: number b of examples in this host's part of a batch.
          seed: seed of the augmentation.
          cache: value of `data.cache`.
          views: number V of views of each image; with V > 1 images are [b, V, H, W, C].

        Raises:
          UserError: the cache or the op string does not suit the source.
        """
        # Check the cache and the op string before any image is read.
        cache_lib.check(cache, source)
        self._ops = parse(source, text)
        self._source, self._text, self._local, self._seed = source, text, local, seed
        raw = cache_lib.RawCache(source.paths) if cache == 'raw' and source.paths else None
        channels = ops_lib.channels(self._ops)
        self._example = Example(
            text=text,
            name=source.name,
            encoded=source.encoded,
            by_path=source.paths is not None,
            image_shape=source.image_shape,
            views=views,
            raw=raw,
            decoded=cache_lib.DecodedCache(channels) if cache == 'decoded' else None,
        )
        self._in_numpy = views == 1 and in_numpy.supports(self._ops)
        self._function: Any = None

    def batches(
        self, planned: Iterable[Planned]
    ) -> Generator[tuple[Plan, np.ndarray, np.ndarray], None, None]:
        """Preprocesses batches with tf.data, some batches in advance.

        Yields:
          The plan of each batch, the slots whose images did not fail (int64 [m], ascending, m ≤ b),
          and these images, uint8 [m, H, W, C]. Exceptions of `planned` are raised again.
        """
        plans = collections.deque[Plan]()
        errors: list[Exception] = []

        # Feed the graph with the rows of each batch, and remember its plan.
        def rows() -> Iterator[tuple[np.ndarray, ...]]:
            try:
                for plan, images in planned:
                    plans.append(plan)
                    yield self._rows(plan, images)
            except Exception as e:  # tf.data would skip it like a failed image
                errors.append(e)

        def aligned(chunks: Iterator[dict[str, np.ndarray]]) -> Generator:
            """Cuts the stream of rows into batches at the ticks."""
            held: dict[str, np.ndarray] | None = None
            for chunk in chunks:
                # Join the rows that are left from the previous chunk.
                if held is not None and len(held['slot']):
                    chunk = {k: np.concatenate([held[k], chunk[k]]) for k in chunk}
                held = chunk
                while (ticks := np.flatnonzero(held['slot'] == self._local)).size:
                    end = ticks[0]
                    yield plans.popleft(), held['slot'][:end], held['image'][:end]
                    held = {k: v[end + 1 :] for k, v in held.items()}
            # The stream ended because the input failed.
            if errors:
                raise errors[0]

        return aligned(self._run(self._dataset(rows())))

    def direct(
        self, planned: Iterable[Planned]
    ) -> Generator[tuple[Plan, np.ndarray, np.ndarray], None, None]:
        """Preprocesses batches without tf.data, with results that are bit-identical to `batches`.

        TensorFlow builds a new graph for each tf.data dataset. This takes a third of a second of
        CPU time, which is too much for a few images. The usual ops of evaluation do not need
        TensorFlow. A batch of this method may also mix encoded images and pixels uint8 [H, W, C].
        """
        for plan, images in planned:
            # Preprocess the images in threads, and leave out those that fail.
            draws = self._draws(plan)
            there = [i for i, image in enumerate(images) if not isinstance(image, BadImage | None)]
            made = _in_threads(self._one, [(plan.ids[i], images[i], draws[i]) for i in there])
            found = {i: image for i, image in zip(there, made, strict=True) if image is not None}
            # All images of a batch have one shape.
            stacked = np.stack([*found.values()]) if found else np.empty(0, np.uint8)
            yield plan, np.array([*found], np.int64), stacked

    def _one(self, example: int, image: str | Image, draws: np.ndarray) -> np.ndarray | None:
        """Preprocesses one image; returns None if that fails, and `fill` finds the reason."""
        # Avoid TensorFlow if possible, because importing it takes seconds.
        if self._in_numpy:
            try:
                found = read_file(image) if isinstance(image, str) else image
                if in_numpy.takes(found, self._example.channels):
                    return in_numpy.apply(self._ops, decoded(found, self._example.channels))
            except (ValueError, ArithmeticError):  # unreadable, empty or smaller than a crop
                return None
        tf = tf_cpu()
        data = image if isinstance(image, np.ndarray) else os.fsencode(image)
        # A batch may mix encoded images and pixels, which need separate functions.
        kind, encoded = self._example, isinstance(data, bytes)
        if encoded != kind.encoded:
            kind = dataclasses.replace(kind, encoded=encoded)
        self._function = function = kind.function()
        try:
            return function(tf.constant(example), tf.constant(data), tf.constant(draws)).numpy()
        # TensorFlow cannot construct its error for a file name that is not UTF-8.
        except (tf.errors.OpError, UnicodeDecodeError):
            return None

    def fill(
        self,
        plan: Plan,
        slots: np.ndarray,
        images: np.ndarray,
        corrupt: dict[str, str],
        warn: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Puts images into their slots, and tries those that failed again with Pillow.

        Args:
          plan: the plan of the batch.
          slots: the slots of `images`, int64 [m].
          images: uint8 [m, H, W, C].
          corrupt: names and reasons; images that fail again are added.
          warn: log each added image; False if the caller reports them.

        Returns:
          Images uint8 [b, H, W, C], zeros in empty slots, and the mask float32 [b].
        """
        filled = np.zeros((self._local, *self._image_shape()), np.uint8)
        mask = np.zeros(self._local, np.float32)
        if len(slots):
            filled[slots], mask[slots] = images, 1
        draws = self._draws(plan)
        # Try the missing images again, one by one.
        for slot in np.setdiff1d(np.flatnonzero(plan.ids >= 0), slots):
            name = self._source.name_of(int(plan.ids[slot]))
            try:
                filled[slot] = self._again(int(plan.ids[slot]), draws[slot], name)
                mask[slot] = 1
            except BadImage as e:
                if warn and name not in corrupt:  # once for each image
                    shown = name[:1000].encode('utf-8', 'backslashreplace').decode()
                    logging.warning('%s: %s', shown, e)
                corrupt[name] = str(e)
        return filled, mask

    def _again(self, example: int, draws: np.ndarray, name: str) -> np.ndarray:
        """Reads and preprocesses an image with Pillow.

        Raises:
          BadImage: the image cannot be read.
          UserError: the image can be read, but an op fails on it.
        """
        if not self._source.indexed:
            raise BadImage('cannot be decoded, or an op fails on it')
        image = decoded(read_each(self._source, [example])[0][0], self._example.channels)
        tf = tf_cpu()
        try:
            return self._example.apply(tf.constant(image), draws, decoded=True).numpy()
        except (tf.errors.OpError, ValueError) as e:
            raise UserError(
                f'{name}: {self._text!r} cannot be applied to it: {first_line(e)}'
            ) from None

    def _draws(self, plan: Plan) -> np.ndarray:
        """Returns a batch's random numbers, float64 [b, ops, PER_OP] or [b, V, ops, PER_OP]."""
        counters = view_counters(plan.epochs, self._example.views)
        ids = np.repeat(plan.ids, self._example.views)
        every = on_host.draw(self._seed, counters.ravel(), ids, self._example.draw_shape[-2])
        return every.reshape(len(counters), *self._example.draw_shape)

    def _rows(self, plan: Plan, images: Sequence) -> tuple[np.ndarray, ...]:
        """Returns the rows of a batch, then its tick, as arrays of slot, id, draws and data.

        Slots without an image have no row.
        """
        there = [i for i, image in enumerate(images) if not isinstance(image, BadImage | None)]
        slots = np.append(there, self._local).astype(np.int64)
        found = [images[i] for i in there]
        # Strings need an object array; pixels are stacked.
        if self._source.encoded:
            data = np.empty(len(slots), object)
            data[:] = [*(os.fsencode(i) if isinstance(i, str) else i for i in found), b'']
        else:
            data = np.stack([*found, np.zeros(self._source.image_shape or (), np.uint8)])
        # The tick has no random numbers; zeros keep the shape.
        draws = np.zeros((len(slots), *self._example.draw_shape))
        draws[:-1] = self._draws(plan)[there]
        return slots, np.append(plan.ids[there], -1), draws, data

    def _dataset(self, rows: Iterator[tuple[np.ndarray, ...]]) -> Any:
        """Returns a tf.data.Dataset of single rows {slot, id, draws, data}.

        Args:
          rows: yields all rows of a batch together.
        """
        tf = tf_cpu()
        data = self._example.data_spec()
        # dtype and shape of each column.
        columns: dict[str, tuple[Any, tuple[int, ...]]] = {
            'slot': (tf.int64, ()),
            'id': (tf.int64, ()),
            'draws': (tf.float64, self._example.draw_shape),
            'data': (data.dtype, tuple(data.shape)),
        }
        # Empty columns mark the end of the stream.
        end = [
            np.empty((0, *shape), object if kind == tf.string else kind.as_numpy_dtype)
            for kind, shape in columns.values()
        ]

        def batch_of_rows(_: Any) -> dict[str, Any]:
            # `from_generator` would double the time of the image ops.
            kinds = [kind for kind, _ in columns.values()]
            values = tf.numpy_function(lambda: list(next(rows, end)), [], kinds)
            return {
                name: tf.ensure_shape(value, [None, *shape])
                for value, (name, (_, shape)) in zip(values, columns.items(), strict=True)
            }

        batches = tf.data.Dataset.range(_FOREVER).map(batch_of_rows)
        return batches.take_while(lambda row: tf.size(row['slot']) > 0).prefetch(1).unbatch()

    def _image_shape(self) -> tuple[int, ...]:
        """The shape of a preprocessed image."""
        if self._function is None and self._in_numpy:
            return *in_numpy.output_size(self._ops), self._example.channels
        function = self._function or self._example.function()
        return tuple(function.output_shapes)

    def _run(self, dataset: Any) -> Iterator[dict[str, np.ndarray]]:
        """Preprocesses the rows of a dataset in parallel, and drops rows that fail."""
        tf = tf_cpu()
        threads = _threads()
        self._function = self._example.function()

        def preprocess(row: dict[str, Any]) -> dict[str, Any]:
            # A tick passes through with an empty image.
            image = tf.cond(
                row['slot'] == self._local,
                lambda: tf.zeros(self._image_shape(), tf.uint8),
                lambda: self._function(row['id'], row['data'], row['draws']),
            )
            return {'slot': row['slot'], 'image': image}

        # Keep the order of the rows, and set all parallelism here instead of by autotuning.
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.private_threadpool_size = threads
        dataset = dataset.map(preprocess, num_parallel_calls=threads, deterministic=True)
        # A chunk has the size of a batch and its tick.
        dataset = dataset.ignore_errors().batch(self._local + 1).prefetch(_AHEAD)
        return dataset.with_options(options).as_numpy_iterator()


def _in_threads(function: Callable, arguments: Sequence[tuple]) -> list[Any]:
    """Calls a function with each tuple of arguments, in threads if there are several."""
    if len(arguments) < 2:
        return [function(*a) for a in arguments]
    # TensorFlow releases the GIL, so threads run in parallel.
    with concurrent.futures.ThreadPoolExecutor(min(len(arguments), _threads())) as pool:
        return list(pool.map(lambda a: function(*a), arguments))


def _threads() -> int:
    """The number of threads: one per CPU core, at least two."""
    return max(2, available_cpus())


def parse(source: Source, text: str) -> tuple[Any, ...]:
    """Parses an op string for the images of a source.

    Raises:
      UserError: the op string is invalid, or does not begin with decode for encoded images.
    """
    ops = ops_lib.parse(text)
    if source.encoded and (not ops or ops[0].name != 'decode'):
        raise UserError(f'{source.name} has encoded images: {text!r} must begin with decode')
    return ops


def decoded(image: Image | BadImage, channels: int = 3) -> np.ndarray:
    """Returns an image from a source as pixels, uint8 [H, W, C].

    Raises:
      BadImage: the image cannot be read.
    """
    if isinstance(image, BadImage):
        raise image
    return read(image, channels) if isinstance(image, bytes) else image
