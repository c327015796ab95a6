"""The roots of JAX's random keys: one number for each use, so that no two uses share a key.

`jax.random.split(key, n)[i]` is `fold_in(key, i)`. Small numbers alone would therefore give different
uses the same key: that of step s of a run, `fold_in(fold_in(key(seed), RUN), s)`, would be that of example
s in epoch RUN, if an example's key were `fold_in(fold_in(key(seed), epoch), s)`. Each use folds a large
constant into its key first, beyond whatever is counted there: steps, epochs, parts of a batch.
"""

import jax

# Folded into `key(seed)`.
PARAMS, RUN = 0, 1  # `split(key(seed))`: initial values of parameters; all steps
AUGMENT = 0x41750000  # the lowest 16 bits are the view
EXTRA = 0x45780000  # what a task adds to the state

# Folded into a step's key, `fold_in(root(seed, RUN), step)`.
DROPOUT = 0x44720000
MIX = 0x4D690000
PART = 0x50610000  # then the number of the part, where a batch is computed in parts


def root(seed: int, use: int | jax.Array) -> jax.Array:
    """Returns the key of one use (`PARAMS`, `RUN`, `AUGMENT`) in a run with that seed."""
    return jax.random.fold_in(jax.random.key(seed), use)


def image_key(
    seed: int, epoch: int | jax.Array, example: int | jax.Array, view: int | jax.Array = 0
) -> jax.Array:
    """Returns the key of an image's augmentation.

    Args:
      seed: of the run.
      epoch: with repeated augmentation the view, as `vision.data.order.batch_ids` counts them.
      example: its id.
      view: below 2¹⁶, where one batch has several views of an image. View 0 has the key of a run
        without views.
    """
    return jax.random.fold_in(jax.random.fold_in(root(seed, AUGMENT + view), epoch), example)
