"""Preprocessing on the device: images in its memory, gathered and augmented under jit.

For what fits (digits, MNIST, CIFAR): no TensorFlow, and the bus carries ids instead of pixels.

Each step is a call of its own. Several in one `lax.scan` cost four times the CPU time a step here
(LeNet-5 at batch 64 on two cores, JAX 0.10.2: 17 ms against 65 ms of CPU time): XLA's CPU backend
runs convolutions inside a loop on its slow path. On accelerators it was not measured.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.core.state import image_key
from vision.data.order import batch_ids, view_counters
from vision.data.source import Source, as_labels
from vision.preprocess import opstring
from vision.preprocess.ops import registry as ops_lib
from vision.preprocess.ops.registry import DeviceRng

Batch = dict[str, jax.Array]


def apply_ops(ops: tuple[opstring.Op, ...], image: jax.Array, key: jax.Array) -> jax.Array:
    """Runs ops on one image.

    Args:
      ops: as `ops.parse` returns them for the device.
      image: uint8 or float32 [H, W, C] in 0 … 255.
      key: of this image.

    Returns:
      float32 [H', W', C'] in 0 … 255; the image as it came if there are no ops.
    """
    image = image.astype(jnp.float32) if ops else image
    for i, op in enumerate(ops):
        entry = ops_lib.find(op.name)
        form = entry.form(ops_lib.DEVICE)
        assert form is not None  # `ops.parse` saw to it
        rng = [DeviceRng(key, i)] if entry.draws() else []
        image = form(image, *rng, *op.args, **op.kwargs)
    return image


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Pixels to what the model is fed: (images / 255 − mean) / std.

    Args:
      images: uint8 or float32 [B, H, W, C] in 0 … 255.
      mean: per channel, or one for all, of pixels scaled to 0 … 1.
      std: likewise.

    Returns:
      float32 [B, H, W, C].

    Raises:
      UserError: neither one value nor one per channel.
    """
    check_channels(mean, std, images.shape[-1])
    scale = 1.0 / (255.0 * np.asarray(std, np.float32))
    shift = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return images.astype(jnp.float32) * scale - shift


def check_channels(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Raises UserError unless there is one mean and one deviation, or one for each channel."""
    for name, values in (('mean', mean), ('std', std)):
        if len(values) not in (1, channels):
            raise UserError(f'preprocess.{name} has {len(values)} values for {channels} channels')


class DeviceSplit:
    """A split whose images lie on every device of the mesh as uint8."""

    def __init__(self, source: Source, ops: str, seed: int, mesh: Mesh):
        """Puts the images there.

        Args:
          source: with `images` in memory.
          ops: an op string whose ops have a form for the device.
          seed: of the augmentation.
          mesh: of all devices.

        Raises:
          UserError: an op that does not exist, or does not run on the device.
        """
        ops_lib.parse(ops, ops_lib.DEVICE)  # to check them
        self.source, self._mesh = source, mesh
        self._images = mesh_lib.put_replicated(source.images, mesh)
        self._labels = mesh_lib.put_replicated(as_labels(source.labels), mesh)
        self._gather = _compiled(ops, seed, mesh)

    def batch(self, ids: np.ndarray, epochs: np.ndarray) -> Batch:
        """Makes one global batch.

        Args:
          ids: int [B]; −1 is padding.
          epochs: int [B], or what `order.batch_ids` counts instead; with the seed and the id, it
            decides the augmentation. int [B, V] for V views of each image, [B, V, H, W, C].
        """
        rows = _own_rows(len(ids))
        index: Any = {'id': ids[rows].astype(np.int32), 'epoch': epochs[rows].astype(np.int32)}
        if jax.process_count() > 1:
            index = mesh_lib.put_batch(index, self._mesh)
        # Otherwise the call puts them there itself, in a third of the time.
        with jax.transfer_guard_host_to_device('allow'):
            return self._gather(self._images, self._labels, index)

    def train_batches(
        self, batch_size: int, seed: int, start_step: int, repeats: int = 1, views: int = 1
    ) -> Iterator[Batch]:
        """Yields the global batches of step `start_step`, `start_step` + 1, … without end."""
        for step in itertools.count(start_step):
            ids, epochs = batch_ids(seed, self.source.num_examples, batch_size, step, repeats)
            yield self.batch(ids, epochs if views == 1 else view_counters(epochs, views))

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields every example once, in order; the last batch is padded."""
        for start in range(0, self.source.num_examples, batch_size):
            ids = np.arange(start, start + batch_size)
            ids[ids >= self.source.num_examples] = -1
            yield self.batch(ids, np.zeros_like(ids))


@functools.cache
def _compiled(ops: str, seed: int, mesh: Mesh) -> Callable[..., Batch]:
    """`_gather` under jit; splits of one shape share what is compiled."""
    gather = functools.partial(_gather, ops=opstring.parse(ops), seed=seed)
    whole, split = mesh_lib.replicated(mesh), mesh_lib.split_batch(mesh)
    return jax.jit(gather, in_shardings=(whole, whole, split), out_shardings=split)


def _gather(
    images: jax.Array,
    labels: jax.Array,
    index: Batch,
    ops: tuple[opstring.Op, ...],
    seed: int,
) -> Batch:
    """One batch out of the split, augmented: keyed on (seed, epoch, id)."""
    ids, epochs = index['id'], index['epoch']
    real = ids >= 0
    rows = jnp.where(real, ids, 0)

    def one(image: jax.Array, epoch: jax.Array, row: jax.Array) -> jax.Array:
        return apply_ops(ops, image, image_key(seed, epoch, row))

    each = one if epochs.ndim == 1 else jax.vmap(one, in_axes=(None, 0, None))  # of its views
    is_real = real[:, None] if labels.ndim == 2 else real
    return {
        'image': jax.vmap(each)(images[rows], epochs, rows),
        'label': jnp.where(is_real, labels[rows], 0),
        'id': ids,
        'mask': real.astype(jnp.float32),
    }


def _own_rows(batch_size: int) -> slice:
    """This process's rows of a global batch."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
