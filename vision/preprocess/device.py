"""Preprocessing on the device: images stay in device memory and are augmented under jit.

It is used for data that fit there (digits, MNIST, CIFAR). It needs no TensorFlow, and each step
transfers ids instead of pixels. A batch is gathered by a call of its own (`DeviceSplit.batch`), or
inside a program that takes several steps (`DeviceSplit.gather`, `vision.training.step`).
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
    """Applies ops to one image.

    Args:
      ops: ops with a form for the device, from `ops.parse`.
      image: uint8 or float32 [H, W, C] in 0 … 255.
      key: PRNG key of this image.

    Returns:
      float32 [H', W', C'] in 0 … 255; without ops the image is returned unchanged.
    """
    image = image.astype(jnp.float32) if ops else image
    for i, op in enumerate(ops):
        entry = ops_lib.find(op.name)
        form = entry.form(ops_lib.DEVICE)
        assert form is not None  # `ops.parse` has checked it
        # Only random ops take random numbers, and each op has its own numbers.
        rng = [DeviceRng(key, i)] if entry.draws() else []
        image = form(image, *rng, *op.args, **op.kwargs)
    return image


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Normalises pixels for the model: (images / 255 − mean) / std.

    Args:
      images: uint8 or float32 [B, H, W, C] in 0 … 255.
      mean: mean of pixels scaled to 0 … 1, one value for all channels or one per channel.
      std: standard deviation, in the same form.

    Returns:
      float32 [B, H, W, C].

    Raises:
      UserError: the number of values is neither 1 nor C.
    """
    check_channels(mean, std, images.shape[-1])
    # Fold the constants into one multiplication and one subtraction.
    scale = 1.0 / (255.0 * np.asarray(std, np.float32))
    shift = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return images.astype(jnp.float32) * scale - shift


def check_channels(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Raises UserError unless mean and std each have one value, or one per channel."""
    for name, values in (('mean', mean), ('std', std)):
        if len(values) not in (1, channels):
            raise UserError(f'preprocess.{name} has {len(values)} values for {channels} channels')


class DeviceSplit:
    """A split whose images are copied to every device of the mesh as uint8.

    Attributes:
      arrays: the images and the labels on the devices.
      gather: makes a batch under jit from `arrays` and the rows of `train_rows`.
    """

    def __init__(self, source: Source, ops: str, seed: int, mesh: Mesh):
        """Copies the images to the devices.

        Args:
          source: a source with `images` in memory.
          ops: an op string whose ops have a form for the device.
          seed: seed of the augmentation.
          mesh: the mesh of all devices.

        Raises:
          UserError: an op does not exist or does not run on the device.
        """
        ops_lib.parse(ops, ops_lib.DEVICE)  # only to check them
        self.source, self._mesh = source, mesh
        self.arrays = (
            mesh_lib.put_replicated(source.images, mesh),
            mesh_lib.put_replicated(as_labels(source.labels), mesh),
        )
        self.gather = functools.partial(_gather, ops=opstring.parse(ops), seed=seed)
        # Splits share the compiled function.
        self._gather = _compiled(ops, seed, mesh)

    def batch(self, ids: np.ndarray, epochs: np.ndarray) -> Batch:
        """Makes one global batch.

        Args:
          ids: int [B]; −1 is padding.
          epochs: the epoch of each example, or the view number from `order.batch_ids`, int [B].
            Together with the seed and the id it determines the augmentation. For V views of each
            image, int [B, V]; the images are then [B, V, H, W, C].
        """
        # Each process passes only its own rows.
        rows = _own_rows(len(ids))
        index: Any = {'id': ids[rows].astype(np.int32), 'epoch': epochs[rows].astype(np.int32)}
        if jax.process_count() > 1:
            index = mesh_lib.put_batch(index, self._mesh)
        # With one process, jit transfers the index in a third of the time that `put_batch` takes.
        with jax.transfer_guard_host_to_device('allow'):
            return self._gather(*self.arrays, index)

    def train_batches(
        self, batch_size: int, seed: int, start_step: int, repeats: int = 1, views: int = 1
    ) -> Iterator[Batch]:
        """Yields the global batches of steps `start_step`, `start_step` + 1, … without end."""
        for step in itertools.count(start_step):
            yield self.batch(*self.train_rows(batch_size, seed, step, repeats, views))

    def train_rows(
        self, batch_size: int, seed: int, step: int, repeats: int = 1, views: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids and epochs of a step's global batch, as `batch` takes them."""
        ids, epochs = batch_ids(seed, self.source.num_examples, batch_size, step, repeats)
        return ids, epochs if views == 1 else view_counters(epochs, views)

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields every example once, in order; the last batch is padded."""
        for start in range(0, self.source.num_examples, batch_size):
            ids = np.arange(start, start + batch_size)
            # Pad the last batch.
            ids[ids >= self.source.num_examples] = -1
            yield self.batch(ids, np.zeros_like(ids))


@functools.cache
def _compiled(ops: str, seed: int, mesh: Mesh) -> Callable[..., Batch]:
    """Returns `_gather` under jit; splits of one shape share a compiled program."""
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
    """Gathers and augments one batch of a split.

    The augmentation of an example depends only on seed, epoch and id.
    """
    # Padding, with id −1, reads row 0 and is masked below.
    ids, epochs = index['id'], index['epoch']
    real = ids >= 0
    rows = jnp.where(real, ids, 0)

    def one(image: jax.Array, epoch: jax.Array, row: jax.Array) -> jax.Array:
        return apply_ops(ops, image, image_key(seed, epoch, row))

    # With several views per image, `epochs` has a second axis.
    each = one if epochs.ndim == 1 else jax.vmap(one, in_axes=(None, 0, None))
    # Multi-label rows need an axis for the classes.
    is_real = real[:, None] if labels.ndim == 2 else real
    return {
        'image': jax.vmap(each)(images[rows], epochs, rows),
        'label': jnp.where(is_real, labels[rows], 0),
        'id': ids,
        'mask': real.astype(jnp.float32),
    }


def _own_rows(batch_size: int) -> slice:
    """Returns the slice of a global batch that belongs to this process."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
