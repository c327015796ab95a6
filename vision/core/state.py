"""The state of a run: one PyTree, replaced and never changed in place."""

from typing import Any

import flax.struct
import jax


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
        """What `model.apply` takes: the parameters as trained."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What is evaluated and predicted with: the moving average where there is one."""
        if self.ema_params is None:
            return self.variables
        return {'params': self.ema_params, 'batch_stats': self.ema_batch_stats}
