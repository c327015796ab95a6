"""The train state, an immutable PyTree, and the derivation of all random keys of a run.

Each use of randomness has its own constant, so that no two uses share a key. Small constants would
not suffice, because `jax.random.split(key, n)[i]` equals `fold_in(key, i)`. For example, if the key
of example s were `fold_in(fold_in(key(seed), epoch), s)`, then in epoch `RUN` it would equal the
key of step s, `fold_in(fold_in(key(seed), RUN), s)`. Each use therefore first folds in a large
constant, greater than any number of steps, epochs or parts of a batch.
"""

from typing import Any

import flax.struct
import jax

# Constants that are folded into `key(seed)`.
PARAMS, RUN = 0, 1  # the two keys of `split(key(seed))`: initial parameters and training steps
AUGMENT = 0x41750000  # the lowest 16 bits are the number of the view
EXTRA = 0x45780000  # the state that a task adds

# Constants that are folded into a step's key, `fold_in(root_key(seed, RUN), step)`.
DROPOUT = 0x44720000
MIX = 0x4D690000
PART = 0x50610000  # gradient accumulation; the resulting key is split into one per microbatch


def root_key(seed: int, use: int | jax.Array) -> jax.Array:
    """Returns the key of one use of randomness (`PARAMS`, `RUN`, `AUGMENT`) in a run."""
    return jax.random.fold_in(jax.random.key(seed), use)


def image_key(
    seed: int, epoch: int | jax.Array, example: int | jax.Array, view: int | jax.Array = 0
) -> jax.Array:
    """Returns the key of an image's augmentation.

    Args:
      seed: seed of the run.
      epoch: epoch, or with repeated augmentation the number that `vision.data.order.batch_ids`
        returns.
      example: id of the example.
      view: number of the view, below 2¹⁶, if an example has several views. View 0 has the key of a
        run with one view.
    """
    return jax.random.fold_in(jax.random.fold_in(root_key(seed, AUGMENT + view), epoch), example)


@flax.struct.dataclass
class TrainState:
    """The state that a training step reads and replaces.

    Attributes:
      step: int32 scalar, the number of finished steps.
      params: the model's parameters, float32.
      batch_stats: running mean and variance of BatchNorm; {} for models without BatchNorm.
      opt_state: the state of the Optax optimizer.
      ema_params: the average of `params`, exponential or uniform (Polyak), or None.
      ema_batch_stats: the running statistics for `ema_params`, or None.
      extra: state of the task (`Task.init`), such as a teacher or a queue; usually None.
      rng: typed PRNG key; the key of a step is `fold_in(rng, step)`.
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
        """The variables for `model.apply`, with the trained parameters."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables for evaluation and prediction: the moving average if there is one."""
        if self.ema_params is None:
            return self.variables
        return {'params': self.ema_params, 'batch_stats': self.ema_batch_stats}
