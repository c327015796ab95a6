"""The device mesh, which is built at run time, and the layout of arrays on it.

A laptop, eight GPUs and a pod use the same code. A batch is split over the axis 'data', parameters
are replicated or split over the same axis, and `jax.jit` inserts the communication.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vision.core.errors import UserError

# Arrays with fewer values are replicated even with 'fsdp': communication would cost more than the
# memory that is saved.
MIN_SHARDED = 1024


def make_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes, with the single axis 'data'."""
    return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis of an array over all devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def state_sharding(shape: tuple[int, ...], mesh: Mesh, shard: str) -> NamedSharding:
    """Returns the sharding of an array of the train state.

    Args:
      shape: shape of the array. Arrays of one shape have one layout, so that the momentum and the
        average of a parameter lie on the same devices as the parameter.
      mesh: the mesh of all devices.
      shard: 'data' copies the array to every device. 'fsdp' (fully sharded data parallel:
        Rajbhandari et al. 2020, "ZeRO", stage 3) splits it along its longest axis that is divisible
        by the number of devices; of equally long axes, the last one is split. An array without such
        an axis, or with fewer than `MIN_SHARDED` values, is copied to every device.
    """
    if shard == 'data' or np.prod(shape) < MIN_SHARDED:
        return replicated(mesh)
    # Axes whose length the devices can share equally.
    axes = [i for i, length in enumerate(shape) if length % mesh.size == 0]
    if not axes:
        return replicated(mesh)
    axis = max(axes, key=lambda i: (shape[i], i))
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, 'data'))


def put_state(tree: Any, mesh: Mesh, shard: str) -> Any:
    """Puts a PyTree on the devices in the layout of `state_sharding`.

    All processes must hold the same values.
    """
    return jax.tree.map(lambda x: put(x, state_sharding(x.shape, mesh, shard)), tree)


def constrain_state(tree: Any, mesh: Mesh, shard: str) -> Any:
    """Constrains a PyTree under jit to the layout of `state_sharding`."""
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, state_sharding(x.shape, mesh, shard)), tree
    )


def microbatches(batch: Any, count: int, mesh: Mesh) -> Any:
    """Splits a batch into microbatches under jit, without moving rows between devices.

    Args:
      batch: a PyTree of arrays [B, …].
      count: number n of microbatches; it must divide each device's share of B.
      mesh: the mesh of all devices.

    Returns:
      A PyTree of arrays [n, B / n, …]. Row i of microbatch j is row i · n + j of the batch, for any
      number of devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, 'data'))

    def deal(x: jax.Array) -> jax.Array:
        # Assign rows to microbatches in turn, so that each device only splits the rows it holds.
        dealt = x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(dealt, sharding)

    return jax.tree.map(deal, batch)


def check_batch_size(batch_size: int, mesh: Mesh, key: str, parts: int = 1) -> None:
    """Raises UserError if the devices cannot share each of the `parts` of a batch equally."""
    share = mesh.size * parts
    if batch_size % share:
        in_parts = f' in each of {parts} parts' if parts > 1 else ''
        raise UserError(
            f'{key}={batch_size} cannot be shared equally by {mesh.size} devices{in_parts}; '
            f'use a multiple of {share}'
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch on its devices.

    Args:
      batch: arrays [B / P, …] for a global batch of B rows and P processes.
      mesh: the mesh of all devices.

    Returns:
      The global arrays [B, …], split over 'data'.
    """
    return jax.make_array_from_process_local_data(split_batch(mesh), batch)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Copies a PyTree to every device without communication.

    All processes must hold the same values.
    """
    return jax.tree.map(lambda x: put(x, replicated(mesh)), tree)


def abstract(tree: Any) -> Any:
    """Returns the shapes, dtypes and shardings of a PyTree, into which a checkpoint is restored."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array on the devices with a sharding; all processes must hold the same values."""
    # NumPy has no PRNG keys: transfer the words of a key and wrap them again.
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
