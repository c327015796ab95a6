"""Fast forms with the batch sharded over eight simulated devices: XLA's values, no communication."""

import re

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vision.core.mesh import make_mesh, replicated
from vision.models.cpu import fast, winograd
from vision.models.layers import convolve, max_pool, xla_only


def main() -> None:
    """Fails if a value differs or if images are transferred between devices."""
    winograd.WORK = 0
    fast._PART = 8 * 8 * 8 * 8 * 4  # splits 32 images of 8 x 8 x 8 into four parts
    mesh = make_mesh()
    x = jax.random.normal(jax.random.key(0), (16, 8, 8, 128))
    few = jax.random.normal(jax.random.key(3), (32, 8, 8, 8))
    thin = jax.random.normal(jax.random.key(4), (3, 3, 8, 8)) / 10
    wide = jax.random.normal(jax.random.key(1), (3, 3, 128, 128)) / 30
    narrow = jax.random.normal(jax.random.key(2), (1, 1, 128, 128)) / 10

    def loss(kernels, images):
        x, few = images
        y = max_pool(convolve(x, kernels[0], 1, 1), 3, 2, 1)
        y = convolve(convolve(y, kernels[1]), kernels[0], 2, 1)
        return (y**2).sum() + (convolve(few, kernels[2], 1, 1) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    with xla_only():
        reference = jax.jit(jax.grad(lambda kernels, images: loss(kernels, images), (0, 1)))
        expected = reference((wide, narrow, thin), (x, few))
    batch = jax.device_put((x, few), NamedSharding(mesh, PartitionSpec('data')))
    kernels = jax.device_put((wide, narrow, thin), replicated(mesh))
    program = gradient.lower(kernels, batch).compile()
    for ours, theirs in zip(
        jax.tree.leaves(program(kernels, batch)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
    moves = re.findall(r' (all-gather|all-to-all|collective-permute)[\w-]*\(', program.as_text())
    # The gradient of the images is sharded like the images.
    assert not moves, moves


if __name__ == '__main__':
    main()
