"""The loader: batches on the mesh, by whichever route a source and its op string allow.

Images in memory whose ops all run on the device go that way and need no TensorFlow
(`vision.preprocess.device`); everything else goes through tf.data (`vision.preprocess.pipeline`).

A batch is `{'image', 'label', 'id', 'mask'}`: uint8 or float32 [B, H, W, C], and [B, V, H, W, C] where
`data.views` = V > 1; int32 [B], or float32 [B, K] where an image may have several labels; int32 [B];
float32 [B], 1 for an example and 0 (with id −1 and label 0) for padding.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from vision.core import mesh as mesh_lib
from vision.core import processes
from vision.core.errors import UserError
from vision.data.source import BadImage, Source, count_named, read_some
from vision.preprocess import device, opstring
from vision.preprocess import ops as ops_lib
from vision.preprocess.device import Batch, DeviceSplit

_AHEAD = 2  # batches that are on their way to the devices while one is being computed with


def on_device(source: Source, ops: str) -> bool:
    """Whether this source is preprocessed on the device."""
    return ops_lib.place(ops, source.images is not None) == ops_lib.DEVICE


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a training split is fed.

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
        self._host: _HostBatches | None = None
        if on_device(source, loading.ops):
            split = DeviceSplit(source, loading.ops, loading.seed, mesh)
            self._batches = split.train_batches(
                loading.batch_size, loading.seed, start_step, loading.repeats, loading.views
            )
            return
        from vision.preprocess import pipeline

        self._host = _HostBatches(
            pipeline.train_batches(
                source,
                start_step=start_step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                **dataclasses.asdict(loading),
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


def channel_statistics(
    source: Source, ops: str, batch_size: int, mesh: Mesh
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and the standard deviation of each channel over all pixels of a split.

    Exact but for the last rounding: the sums are whole numbers where the ops leave uint8, and
    are added in float64 without loss in any case, so neither the batches nor their order matter.
    Images that cannot be read are left out.

    Args:
      source: the training split.
      ops: the op string of evaluation, which draws nothing at random.
      batch_size: for each device.
      mesh: of all devices.

    Returns:
      mean and std, a float for each channel, of pixels scaled to 0 … 1.

    Raises:
      UserError: no image can be read, or all pixels of a channel are equal.
    """
    sums, squares, pixels = [], [], 0
    for batch in EvalBatches(source, ops, batch_size, mesh, skip_corrupt=True):
        images, masks = (batch[key].addressable_shards for key in ('image', 'mask'))
        for image, mask in zip(images, masks, strict=True):
            here = np.asarray(image.data)[np.asarray(mask.data) > 0].astype(np.float64)
            sums.append(here.sum((1, 2)))
            squares.append(np.square(here).sum((1, 2)))
            pixels += here[..., 0].size
    channels = sums[0].shape[-1]
    own = [math.fsum(np.concatenate(s)[:, c]) for s in (sums, squares) for c in range(channels)]
    count, *totals = _over_all_processes(np.array([pixels, *own]))
    if not count:
        raise UserError(f'{source.name}: no image can be read, so they have no mean')
    mean, square = np.reshape(totals, (2, channels)) / count
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    if not deviation.all():
        raise UserError(
            f'{source.name}: all pixels of channel {int(deviation.argmin())} are equal; '
            "preprocess.normalise='dataset' would divide by 0"
        )
    return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


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


def _over_all_processes(values: np.ndarray) -> np.ndarray:
    """The sums of each process's float64 values."""
    if jax.process_count() == 1:
        return values
    from jax.experimental.multihost_utils import process_allgather

    # As integers: JAX would round float64 to float32.
    bits = process_allgather(values.view(np.uint32))
    return np.array([math.fsum(column) for column in np.asarray(bits).view(np.float64).T])
