"""The tf.data graph of an op string: rows in, images out, in parallel; and what to do about a bad one."""

import logging
import os
import re
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.tf_cpu import tf_cpu
from vision.data.source import ArraySource, FileSource, RecordSource, Source, TFDSSource
from vision.preprocess import cache as cache_lib
from vision.preprocess import ops as ops_lib
from vision.preprocess import rows
from vision.preprocess.decode import BadImage, read, read_file
from vision.preprocess.draws import draw

_AHEAD = 2  # batches prepared while one is used


class Preprocess:
    """Runs an op string over rows, and says what was wrong with those that dropped out."""

    def __init__(self, source: Source, text: str, local: int, seed: int, cache: str):
        """Checks that the ops fit the source.

        Args:
          source: of the rows.
          text: the op string.
          local: this host's share of a batch.
          seed: of the augmentation.
          cache: what is kept of each file, as `data.cache` says.

        Raises:
          UserError: a cache or an op string that this source cannot have.
        """
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
                from vision.data.tfds_source import unreadable

                assert isinstance(self._source, TFDSSource)
                raise unreadable(self._source, _first_line(errors[0]))

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


def _first_line(error: Exception) -> str:
    """What an error says, without TensorFlow's names of nodes and ops around it."""
    return re.sub(r'\{\{.*?\}\}\s*|\s*\[(\[|Op).*', '', str(error).split('\n')[0])
