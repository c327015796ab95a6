"""Mean and standard deviation of a split's pixels: `preprocess.normalise='dataset'`."""

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
    batches = EvalBatches(source, ops, batch_size, mesh, skip_corrupt=True)
    count = math.ceil(source.num_examples / (batch_size * mesh.size))
    for batch in track(batches, count, f'mean and deviation of {source.name}'):
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


def _over_all_processes(values: np.ndarray) -> np.ndarray:
    """The sums of each process's float64 values."""
    if jax.process_count() == 1:
        return values
    from jax.experimental.multihost_utils import process_allgather

    # As integers: JAX would round float64 to float32.
    bits = process_allgather(values.view(np.uint32))
    return np.array([math.fsum(column) for column in np.asarray(bits).view(np.float64).T])
