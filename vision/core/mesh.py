"""The mesh of devices, built at run time, and how arrays are laid out on it.

One code path for a laptop, eight GPUs and a pod: a batch is split over the axis 'data',
parameters are on every device, and `jax.jit` puts the communication in between.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vision.core.errors import UserError


def make_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes: one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Raises UserError if the devices cannot share a global batch of that size."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(
            f'{key}={batch_size}: the {mesh.size} devices must get an equal share of at least one '
            f'example each; use a multiple of {mesh.size}'
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices.

    Args:
      batch: arrays whose first axis is the global batch size over the number of processes.
      mesh: of all devices.

    Returns:
      The global arrays, split over 'data'.
    """
    return jax.make_array_from_process_local_data(split_batch(mesh), batch)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Puts a PyTree that every process holds alike on every device, without communication."""
    return jax.tree.map(lambda x: put(x, replicated(mesh)), tree)


def abstract(tree: Any) -> Any:
    """Shapes, types and layout of a PyTree of arrays: what a checkpoint is read into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every process holds alike on the devices, laid out as `sharding` says."""
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
