"""BatchNorm of accelerators on a batch that is split over eight simulated devices."""

import re

import jax
import numpy as np

from vision.core.mesh import make_mesh, replicated, split_batch
from vision.models.batch_norm import normalise


def main():
    """Compares values and gradients with those of one device; looks for moved images."""
    rng = np.random.default_rng(0)
    x = (50 + rng.standard_normal((16, 6, 6, 4))).astype(np.float32)
    w = rng.standard_normal(x.shape).astype(np.float32)
    scale, bias = rng.standard_normal((2, 4)).astype(np.float32)

    def step(x, scale, bias, w):
        def loss(x, scale, bias):
            y, mean, var = normalise(x, scale, bias, 1e-5)
            return (y * y * w).sum(), (y, mean, var)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)

    mesh = make_mesh()
    split, whole = split_batch(mesh), replicated(mesh)
    on_eight = jax.jit(step, in_shardings=(split, whole, whole, split))
    ours, theirs = on_eight(x, scale, bias, w), jax.jit(step)(x, scale, bias, w)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    assert ours[1][0].sharding == split  # the gradient of the images stays where they are
    # Collectives are sums over channels only.
    program = on_eight.lower(x, scale, bias, w).compile().as_text()
    assert not re.search(r'all-gather|all-to-all|collective-permute', program)
    assert 'all-reduce' in program
    print(len(ours[0][1][0].sharding.device_set), 'devices agree, and no image moves')


if __name__ == '__main__':
    main()
