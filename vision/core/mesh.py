"""The mesh of devices, built at run time, and how arrays are laid out on it.

One code path for a laptop, eight GPUs and a pod: a batch is split over the axis 'data', parameters
are on every device or split over the same axis, and `jax.jit` puts the communication in between.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vision.core.errors import UserError

# Arrays of fewer values are not worth a message: with 'fsdp', too, they are on every device.
MIN_SHARDED = 1024


def make_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes: one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def state_sharding(shape: tuple[int, ...], mesh: Mesh, shard: str) -> NamedSharding:
    """The layout of an array of the train state.

    Args:
      shape: of the array; what has the shape of a parameter (its momentum, its average) lies where
        the parameter lies.
      mesh: of all devices.
      shard: 'data': on every device. 'fsdp' (fully sharded data parallel: Rajbhandari et al. 2020,
        "ZeRO", stage 3): split over the devices along its longest axis that they can share equally,
        the last of equals; on every device if there is none, or under `MIN_SHARDED` values.
    """
    if shard == 'data' or np.prod(shape) < MIN_SHARDED:
        return replicated(mesh)
    axes = [i for i, length in enumerate(shape) if length % mesh.size == 0]
    if not axes:
        return replicated(mesh)
    axis = max(axes, key=lambda i: (shape[i], i))
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, 'data'))


def put_state(tree: Any, mesh: Mesh, shard: str) -> Any:
    """Lays a PyTree that every process holds alike out as `state_sharding` says."""
    return jax.tree.map(lambda x: put(x, state_sharding(x.shape, mesh, shard)), tree)


def constrain_state(tree: Any, mesh: Mesh, shard: str) -> Any:
    """The same under jit: what the compiler must lay out as `state_sharding` says."""
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, state_sharding(x.shape, mesh, shard)), tree
    )


def microbatches(batch: Any, count: int, mesh: Mesh) -> Any:
    """Deals the rows of a batch out in turn, under jit: no row leaves its device.

    Args:
      batch: a PyTree of arrays [B, …].
      count: n, of the microbatches; the devices' share of B is a multiple of it.
      mesh: of all devices.

    Returns:
      Arrays [n, B / n, …]: row i of microbatch j is row i · n + j, on any number of devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, 'data'))

    def deal(x: jax.Array) -> jax.Array:
        dealt = x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(dealt, sharding)

    return jax.tree.map(deal, batch)


def check_batch_size(batch_size: int, mesh: Mesh, key: str, parts: int = 1) -> None:
    """Raises UserError if the devices cannot share each of the `parts` of a global batch equally."""
    share = mesh.size * parts
    if batch_size % share:
        in_parts = f' in each of {parts} parts' if parts > 1 else ''
        raise UserError(
            f'{key}={batch_size}: the {mesh.size} devices must get an equal share of at least one '
            f'example each{in_parts}; use a multiple of {share}'
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
