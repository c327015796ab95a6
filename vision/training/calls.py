"""Calls of the device, each of which takes one training step, or several where that is faster."""

from typing import Any

import jax
import numpy as np

from vision.core.state import TrainState
from vision.preprocess import inputs
from vision.preprocess.device import Batch, DeviceSplit
from vision.training.setup import Setup
from vision.training.step import Metrics, make_train_step, make_train_steps

_MOST = 100  # steps in one call of an accelerator
_SECONDS = 0.5  # a call takes about this long at most, so that signals are answered soon


class Calls:
    """Loads the data of calls and takes their steps.

    A run uses one compiled program for all its calls, so its state does not depend on their
    lengths.

    Attributes:
      batches: the loader.
      most: the maximum number of steps in a call; `choose` lowers it for slow steps.
    """

    def __init__(self, run: Setup, start_step: int):
        """Opens the training split at a step, and builds the program.

        Args:
          run: the setup.
          start_step: number of finished steps.
        """
        self.batches = inputs.TrainBatches(run.train, run.loading, run.mesh, start_step)
        split = self.batches.split
        self.most = self._length = _most(run.steps_per_call, split)
        if split is not None and self.most > 1:
            self._steps = make_train_steps(run.recipe, run.mesh, split.gather)
        else:
            self._step = make_train_step(run.recipe, run.mesh)

    def choose(self, seconds: float) -> None:
        """Sets `most` for steps that take `seconds` each; NaN, for no measurement, changes nothing."""
        if seconds > 0:
            self.most = max(1, min(self._length, int(_SECONDS / seconds)))

    def load(self, first: int, count: int) -> dict[str, Any]:
        """Loads the next call's batch; or its ids and epochs, if the program gathers the batches.

        Args:
          first: number of the call's first step, from 1.
          count: number of its steps.
        """
        if self._length == 1:
            return next(self.batches)
        return self.batches.rows(first - 1, count, self._length)

    def take(
        self, state: TrainState, loaded: dict[str, Any], count: int
    ) -> tuple[TrainState, Metrics, Metrics]:
        """Takes `count` steps; nothing is read back from the device.

        Returns:
          The state; the metrics of all steps, in the form of `Interval.add`; and the metrics of the
          last step.
        """
        if self._length == 1:
            state, metrics = self._step(state, loaded)
            return state, metrics, metrics
        assert self.batches.split is not None
        with jax.transfer_guard_host_to_device('allow'):
            return self._steps(state, self.batches.split.arrays, loaded, np.int32(count))

    def batch(self, loaded: dict[str, Any], count: int) -> Batch:
        """Returns the batch of a call of one step; {} for a call of several."""
        if self._length == 1:
            return loaded
        assert self.batches.split is not None
        # The program does not return its batches, so this one is gathered again.
        return self.batches.split.batch(loaded['id'][0], loaded['epoch'][0]) if count == 1 else {}


def _most(asked: int | None, split: DeviceSplit | None) -> int:
    """Returns the maximum number of steps in a call; 1 selects the program for single steps.

    Args:
      asked: `training.steps_per_call`.
      split: the split on the devices; None if the host preprocesses the batches.
    """
    # Processes answer a signal after the same step, and debuggers look at single steps.
    settings: Any = jax.config
    debugging = settings.jax_debug_nans or settings.jax_disable_jit
    if split is None or jax.process_count() > 1 or debugging:
        return 1
    if asked is not None:
        return asked
    return 1 if jax.default_backend() == 'cpu' else _MOST
