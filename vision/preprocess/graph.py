"""The host's tf.data graph: rows in, images out, in parallel; and what to do about a bad one.

A row is one slot of one batch. After the rows of each batch comes a tick, a row without an image.
Images that fail drop out of the stream; the ticks say where, so the others stay in their places and
no example pays for the possibility.
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
from vision.core.startup import first_line, tf_cpu
from vision.data.files import is_path
from vision.data.order import view_counters
from vision.data.source import BadImage, Image, Source, no_labels, read_each
from vision.preprocess import cache as cache_lib
from vision.preprocess.decode import read
from vision.preprocess.example import Example
from vision.preprocess.ops import on_host
from vision.preprocess.ops import registry as ops_lib

_AHEAD = 2  # batches prepared while one is used
_FOREVER = 1 << 62  # batches


class Plan(NamedTuple):
    """The examples of one host's part of a batch; −1 in `ids` is padding.

    Attributes:
      ids: int64 [b].
      epochs: int64 [b]; with repeated augmentation what `order.batch_ids` counts instead.
      labels: int32 [b], or float32 [b, K]; 0 for padding.
    """

    ids: np.ndarray
    epochs: np.ndarray
    labels: np.ndarray


class Planned(NamedTuple):
    """A batch on its way into the graph: its plan, and of each slot the image.

    A path, encoded bytes or pixels; a `BadImage` or None where there is no image.
    """

    plan: Plan
    images: Sequence[str | Image | BadImage | None]


def padding(source: Source, count: int) -> Plan:
    """The plan of a batch of nothing."""
    return Plan(np.full(count, -1), np.zeros(count, np.int64), no_labels(source, count))


def look_up(source: Source, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Planned]:
    """Reads the images of batches from an indexed source; files are named only, and read in the graph.

    Args:
      source: of the examples.
      batches: the ids and the epochs of each, int64 [b].
    """
    for ids, epochs in batches:
        real = np.flatnonzero(ids >= 0)
        plan = padding(source, len(ids))._replace(ids=ids, epochs=epochs)
        images: list[Any] = [None] * len(ids)
        if source.paths is not None:
            # TensorFlow would ask the network for what is called gs://ours.
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
    """Runs an op string over batches, and says what was wrong with the images that dropped out."""

    def __init__(
        self, source: Source, text: str, local: int, seed: int, cache: str = 'none', views: int = 1
    ):
        """Checks that the ops fit the source.

        Args:
          source: of the images.
          text: the op string.
          local: this host's share of a batch, b.
          seed: of the augmentation.
          cache: what is kept of each image, as `data.cache` says.
          views: in how many draws each image comes; with several, images are [b, V, H, W, C].

        Raises:
          UserError: a cache or an op string that this source cannot have.
        """
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
        self._function: Any = None

    def batches(
        self, planned: Iterable[Planned]
    ) -> Generator[tuple[Plan, np.ndarray, np.ndarray], None, None]:
        """Preprocesses batches, from now on and some batches ahead.

        Returns:
          A generator of each batch's plan, the slots whose images are there (int64 [m], ascending,
          m ≤ b) and the images uint8 [m, H, W, C]. It raises what `planned` raises.
        """
        plans = collections.deque[Plan]()
        errors: list[Exception] = []

        def rows() -> Iterator[tuple[np.ndarray, ...]]:
            try:
                for plan, images in planned:
                    plans.append(plan)
                    yield self._rows(plan, images)
            except Exception as e:  # inside the data set it would be skipped like a bad image
                errors.append(e)

        def aligned(chunks: Iterator[dict[str, np.ndarray]]) -> Generator:
            """Cuts the stream of rows, some of which dropped out, at its ticks."""
            held: dict[str, np.ndarray] | None = None
            for chunk in chunks:
                if held is not None and len(held['slot']):
                    chunk = {k: np.concatenate([held[k], chunk[k]]) for k in chunk}
                held = chunk
                while (ticks := np.flatnonzero(held['slot'] == self._local)).size:
                    end = ticks[0]
                    yield plans.popleft(), held['slot'][:end], held['image'][:end]
                    held = {k: v[end + 1 :] for k, v in held.items()}
            if errors:
                raise errors[0]

        return aligned(self._run(self._dataset(rows())))

    def direct(
        self, planned: Iterable[Planned]
    ) -> Generator[tuple[Plan, np.ndarray, np.ndarray], None, None]:
        """`batches`, and the same pixels, without a data set of tf.data's.

        TensorFlow builds the graph of a data set anew each time, which takes a third of a second of
        CPU time: too much for a few images. The images of a batch may also be of different kinds,
        encoded or pixels uint8 [H, W, channels].
        """
        for plan, images in planned:
            draws = self._draws(plan)
            there = [i for i, image in enumerate(images) if not isinstance(image, BadImage | None)]
            made = _in_threads(self._one, [(plan.ids[i], images[i], draws[i]) for i in there])
            found = {i: image for i, image in zip(there, made, strict=True) if image is not None}
            stacked = np.stack([*found.values()]) if found else np.empty(0, np.uint8)
            yield plan, np.array([*found], np.int64), stacked

    def _one(self, example: int, image: str | Image, draws: np.ndarray) -> np.ndarray | None:
        """One image, preprocessed; None where that fails: `fill` finds out why."""
        tf = tf_cpu()
        data = image if isinstance(image, np.ndarray) else os.fsencode(image)
        kind, encoded = self._example, isinstance(data, bytes)
        if encoded != kind.encoded:
            kind = dataclasses.replace(kind, encoded=encoded)
        self._function = function = kind.function()
        try:
            return function(tf.constant(example), tf.constant(data), tf.constant(draws)).numpy()
        # Of a name that is not UTF-8 TensorFlow's error cannot even be made.
        except (tf.errors.OpError, UnicodeDecodeError):
            return None

    def fill(
        self, plan: Plan, slots: np.ndarray, images: np.ndarray, corrupt: dict[str, str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Puts images in their slots, tries what is missing once more, notes what stays so.

        Returns:
          Images [b, H, W, C], zeros where there is none, and the mask [b].
        """
        filled = np.zeros((self._local, *self._image_shape()), np.uint8)
        mask = np.zeros(self._local, np.float32)
        if len(slots):
            filled[slots], mask[slots] = images, 1
        draws = self._draws(plan)
        for slot in np.setdiff1d(np.flatnonzero(plan.ids >= 0), slots):
            name = self._source.name_of(int(plan.ids[slot]))
            try:
                filled[slot] = self._again(int(plan.ids[slot]), draws[slot], name)
                mask[slot] = 1
            except BadImage as e:
                if name not in corrupt:
                    shown = name[:1000].encode('utf-8', 'backslashreplace').decode()
                    logging.warning('%s: %s', shown, e)
                corrupt[name] = str(e)
        return filled, mask

    def _again(self, example: int, draws: np.ndarray, name: str) -> np.ndarray:
        """Reads an image with Pillow alone: either it says why it cannot, or here is the image."""
        tf = tf_cpu()
        if not self._source.indexed:
            raise BadImage('cannot be decoded, or is too small for the ops')
        image = decoded(read_each(self._source, [example])[0][0], self._example.channels)
        try:
            return self._example.apply(tf.constant(image), draws, decoded=True).numpy()
        except (tf.errors.OpError, ValueError) as e:
            raise UserError(f'{name}: {self._text!r} does not fit it: {first_line(e)}') from None

    def _draws(self, plan: Plan) -> np.ndarray:
        """The random numbers of a batch: float64 [b, ops, PER_OP], or [b, V, ops, PER_OP]."""
        counters = view_counters(plan.epochs, self._example.views)
        ids = np.repeat(plan.ids, self._example.views)
        every = on_host.draw(self._seed, counters.ravel(), ids, self._example.draw_shape[-2])
        return every.reshape(len(counters), *self._example.draw_shape)

    def _rows(self, plan: Plan, images: Sequence) -> tuple[np.ndarray, ...]:
        """The rows of a batch whose images are there, and its tick: slot, id, draws, data."""
        there = [i for i, image in enumerate(images) if not isinstance(image, BadImage | None)]
        slots = np.append(there, self._local).astype(np.int64)
        found = [images[i] for i in there]
        if self._source.encoded:
            data = np.empty(len(slots), object)
            data[:] = [*(os.fsencode(i) if isinstance(i, str) else i for i in found), b'']
        else:
            data = np.stack([*found, np.zeros(self._source.image_shape or (), np.uint8)])
        draws = np.zeros((len(slots), *self._example.draw_shape))
        draws[:-1] = self._draws(plan)[there]
        return slots, np.append(plan.ids[there], -1), draws, data

    def _dataset(self, rows: Iterator[tuple[np.ndarray, ...]]) -> Any:
        """Single rows {slot, id, draws, data} of what yields those of a batch at once."""
        tf = tf_cpu()
        data = self._example.data_spec()
        columns: dict[str, tuple[Any, tuple[int, ...]]] = {
            'slot': (tf.int64, ()),
            'id': (tf.int64, ()),
            'draws': (tf.float64, self._example.draw_shape),
            'data': (data.dtype, tuple(data.shape)),
        }
        end = [
            np.empty((0, *shape), object if kind == tf.string else kind.as_numpy_dtype)
            for kind, shape in columns.values()
        ]

        def batch_of_rows(_: Any) -> dict[str, Any]:
            # No `from_generator`: with it the ops on an image take twice the time.
            kinds = [kind for kind, _ in columns.values()]
            values = tf.numpy_function(lambda: list(next(rows, end)), [], kinds)
            return {
                name: tf.ensure_shape(value, [None, *shape])
                for value, (name, (_, shape)) in zip(values, columns.items(), strict=True)
            }

        batches = tf.data.Dataset.range(_FOREVER).map(batch_of_rows)
        return batches.take_while(lambda row: tf.size(row['slot']) > 0).prefetch(1).unbatch()

    def _image_shape(self) -> tuple[int, ...]:
        function = self._function or self._example.function()
        return tuple(function.output_shapes)

    def _run(self, dataset: Any) -> Iterator[dict[str, np.ndarray]]:
        """Preprocesses rows in parallel; those that fail drop out."""
        tf = tf_cpu()
        threads = _threads()
        self._function = self._example.function()

        def preprocess(row: dict[str, Any]) -> dict[str, Any]:
            image = tf.cond(
                row['slot'] == self._local,
                lambda: tf.zeros(self._image_shape(), tf.uint8),
                lambda: self._function(row['id'], row['data'], row['draws']),
            )
            return {'slot': row['slot'], 'image': image}

        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.private_threadpool_size = threads
        dataset = dataset.map(preprocess, num_parallel_calls=threads, deterministic=True)
        dataset = dataset.ignore_errors().batch(self._local + 1).prefetch(_AHEAD)
        return dataset.with_options(options).as_numpy_iterator()


def _in_threads(function: Callable, arguments: Sequence[tuple]) -> list[Any]:
    """Calls a function with each of the arguments; a single call needs no thread of its own."""
    if len(arguments) < 2:
        return [function(*a) for a in arguments]
    with concurrent.futures.ThreadPoolExecutor(min(len(arguments), _threads())) as pool:
        return list(pool.map(lambda a: function(*a), arguments))


def _threads() -> int:
    return max(2, len(os.sched_getaffinity(0)))


def parse(source: Source, text: str) -> tuple[Any, ...]:
    """Reads an op string for the images of a source.

    Raises:
      UserError: it is misspelt, or does not begin with decode where images are encoded.
    """
    ops = ops_lib.parse(text)
    if source.encoded and (not ops or ops[0].name != 'decode'):
        raise UserError(f'{source.name} holds encoded images: {text!r} must begin with decode')
    return ops


def decoded(image: Image | BadImage, channels: int = 3) -> np.ndarray:
    """The image that a source gives for an example, as pixels: uint8 [H, W, C].

    Raises:
      BadImage: it cannot be read.
    """
    if isinstance(image, BadImage):
        raise image
    return read(image, channels) if isinstance(image, bytes) else image
