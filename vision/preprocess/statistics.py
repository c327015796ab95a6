"""Mean and standard deviation of a split's pixels, for `preprocess.normalise='dataset'`."""

import math

import jax
import numpy as np
from jax.sharding import Mesh

from vision.core.errors import UserError
from vision.core.progress import track
from vision.data.source import Source
from vision.preprocess.inputs import EvalBatches


def channel_statistics(
    source: Source, ops: str, batch_size: int, mesh: Mesh
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes the mean and standard deviation of each channel over all pixels of a split.

    The sums over images are added exactly, and only the last few operations round. The result
    therefore does not depend on the batches or their order. If the ops return uint8, the sums are
    whole numbers. Images that cannot be read are skipped.

    Args:
      source: the training split.
      ops: the op string of evaluation, which has no random ops.
      batch_size: examples per device.
      mesh: the mesh of all devices.

    Returns:
      Mean and standard deviation, one float per channel, of pixels scaled to 0 … 1.

    Raises:
      UserError: no image can be read, or all pixels of a channel are equal.
    """
    # Sum the pixels and their squares for each image, on this process.
    sums, squares, pixels = [], [], 0
    batches = EvalBatches(source, ops, batch_size, mesh, skip_corrupt=True)
    count = math.ceil(source.num_examples / (batch_size * mesh.size))
    for batch in track(batches, count, f'mean and deviation of {source.name}'):
        images, masks = (batch[key].addressable_shards for key in ('image', 'mask'))
        for image, mask in zip(images, masks, strict=True):
            # Leave out padding and unreadable images.
            here = np.asarray(image.data)[np.asarray(mask.data) > 0].astype(np.float64)
            sums.append(here.sum((1, 2)))
            squares.append(np.square(here).sum((1, 2)))
            pixels += here[..., 0].size
    # Add the sums exactly (fsum), first over images and then over processes.
    channels = sums[0].shape[-1]
    own = [math.fsum(np.concatenate(s)[:, c]) for s in (sums, squares) for c in range(channels)]
    count, *totals = _over_all_processes(np.array([pixels, *own]))
    if not count:
        raise UserError(f'{source.name}: no image can be read, so there is no mean')
    mean, square = np.reshape(totals, (2, channels)) / count
    # Rounding may make the variance of a constant channel slightly negative.
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    if not deviation.all():
        raise UserError(
            f'{source.name}: all pixels of channel {int(deviation.argmin())} are equal; '
            "preprocess.normalise='dataset' would divide by 0"
        )
    return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


def _over_all_processes(values: np.ndarray) -> np.ndarray:
    """Returns the sums over all processes of float64 values."""
    if jax.process_count() == 1:
        return values
    from jax.experimental.multihost_utils import process_allgather

    # Send the bits as integers, because JAX would round float64 to float32.
    bits = process_allgather(values.view(np.uint32))
    # Add exactly, so that the order of the processes does not matter.
    return np.array([math.fsum(column) for column in np.asarray(bits).view(np.float64).T])
