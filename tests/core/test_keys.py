"""Random keys: no two uses share one."""

import itertools

import jax
import numpy as np

from vision.core.config import default_config
from vision.core.state import DROPOUT, MIX, PARAMS, PART, RUN, image_key, root_key
from vision.data.order import hash64
from vision.preprocess.ops import PER_OP
from vision.preprocess.ops.on_host import draw

SEEDS, FEW = range(3), np.arange(12)


def data(key):
    return np.asarray(jax.random.key_data(key)).reshape(-1, 2)


def fold(key, numbers):
    """Folds each of N numbers into each of K keys; returns [K · N]."""
    folded = jax.vmap(lambda k: jax.vmap(lambda n: jax.random.fold_in(k, n))(numbers))
    return folded(key.reshape(-1)).reshape(-1)


def test_no_two_uses_share_a_key():
    """Covers seeds, steps, epochs, examples, views, and the keys that steps and ops derive."""
    every = []
    for seed in SEEDS:
        roots = jax.numpy.stack([root_key(seed, use) for use in (PARAMS, RUN)])
        steps = fold(roots[1], FEW)
        parts = fold(fold(steps, np.array([PART])), FEW)
        uses = fold(steps, np.array([DROPOUT, MIX]))
        images = jax.vmap(lambda e, i, v, seed=seed: image_key(seed, e, i, v))(
            *map(np.array, zip(*itertools.product(FEW, FEW, range(3)), strict=True))
        )
        ops = fold(
            images, np.array([PER_OP * op + request for op in range(4) for request in range(3)])
        )
        every += [*map(data, (roots, steps, parts, uses, images, ops))]
    together = np.concatenate(every)
    assert len(together) > 15_000
    assert len(np.unique(together, axis=0)) == len(together)


def test_the_first_view_is_that_of_a_run_without_views():
    one, other = image_key(5, 2, 7), image_key(5, 2, 7, view=1)
    np.testing.assert_array_equal(data(one), data(image_key(5, 2, 7, view=0)))
    assert (data(one) != data(other)).any()


def test_parameters_and_steps_have_the_keys_of_recorded_runs():
    seed = default_config().seed
    expected = data(jax.random.split(jax.random.key(seed)))
    np.testing.assert_array_equal(data(root_key(seed, PARAMS)), expected[:1])
    np.testing.assert_array_equal(data(root_key(seed, RUN)), expected[1:])


def test_the_hosts_draws_are_not_those_of_the_order():
    """They also differ from the hashes of the TFDS order and of the hold-out."""
    ids, epochs = (x.ravel() for x in np.meshgrid(FEW, FEW))
    draws = [draw(seed, epochs, ids, 3) for seed in SEEDS]
    order = [hash64(seed, epochs, ids) for seed in SEEDS]
    files = [hash64(seed, epochs, ids, hosts) for seed in SEEDS for hosts in range(4)]
    split = [hash64(0x5B11, FEW)]
    as_draws = [(np.concatenate(x) >> np.uint64(11)) * 2.0**-53 for x in (order, files, split)]
    every = np.concatenate([np.ravel(draws), *as_draws])
    assert len(np.unique(every)) == len(every)
