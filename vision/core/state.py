"""The state of a run, one PyTree that is replaced and never changed in place, and the roots of its random keys.

Each use of randomness has one number, so that no two uses share a key. `jax.random.split(key, n)[i]` is
`fold_in(key, i)`. Small numbers alone would therefore give different
uses the same key: that of step s of a run, `fold_in(fold_in(key(seed), RUN), s)`, would be that of example
s in epoch RUN, if an example's key were `fold_in(fold_in(key(seed), epoch), s)`. Each use folds a large
constant into its key first, beyond whatever is counted there: steps, epochs, parts of a batch.
"""

from typing import Any

import flax.struct
import jax

# Folded into `key(seed)`.
PARAMS, RUN = 0, 1  # `split(key(seed))`: initial values of parameters; all steps
AUGMENT = 0x41750000  # the lowest 16 bits are the view
EXTRA = 0x45780000  # what a task adds to the state

# Folded into a step's key, `fold_in(root_key(seed, RUN), step)`.
DROPOUT = 0x44720000
MIX = 0x4D690000
PART = 0x50610000  # then the number of the part, where a batch is computed in parts


def root_key(seed: int, use: int | jax.Array) -> jax.Array:
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
    return jax.random.fold_in(jax.random.fold_in(root_key(seed, AUGMENT + view), epoch), example)


@flax.struct.dataclass
class TrainState:
    """All that a training step reads and writes.

    Attributes:
      step: int32 scalar, steps done.
      params: the model's parameters, float32.
      batch_stats: BatchNorm's running mean and variance; {} where there is no BatchNorm.
      opt_state: optax's.
      ema_params: the average of `params`, exponential or Polyak's, or None.
      ema_batch_stats: the statistics that belong to `ema_params`, or None.
      extra: what the task adds (`Task.init`): a teacher, a queue; None as a rule.
      rng: typed key; the randomness of a step is `fold_in(rng, step)`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any
    ema_batch_stats: Any
    rng: jax.Array
    extra: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of `model.apply`: the parameters as trained."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables of evaluation and prediction: the moving average where there is one."""
        if self.ema_params is None:
            return self.variables
        return {'params': self.ema_params, 'batch_stats': self.ema_batch_stats}
