"""A trace of some steps, for TensorBoard's profile tab or Perfetto: `--profile=START:STOP`."""

import re
from pathlib import Path

import jax

from vision.core.errors import UserError
from vision.preprocess.device import Batch
from vision.training.hooks import Hook
from vision.training.step import Metrics


class Profile(Hook):
    """Traces steps START to STOP into `workdir/plugins/profile/`; each process its own."""

    def __init__(self, first: int, last: int, workdir: Path):
        """Starts nothing yet.

        Args:
          first: step to trace, from 1.
          last: step to trace, inclusive.
          workdir: of the run.
        """
        self._first, self._last, self._workdir = first, last, workdir
        self._step: jax.profiler.StepTraceAnnotation | None = None  # while it traces

    def before_step(self, step: int) -> None:
        """Begins, also where a run goes on in the midst of the steps asked for."""
        if self._first <= step <= self._last:
            if self._step is None:
                jax.profiler.start_trace(str(self._workdir), create_perfetto_trace=True)
            self._step = jax.profiler.StepTraceAnnotation('train', step_num=step)
            self._step.__enter__()

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Ends it with the last step, when the device is through with it."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
            if step == self._last:
                jax.block_until_ready(metrics)
                self._stop()

    def __exit__(self, *_) -> None:
        if self._step is not None:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._step = None


def from_flag(text: str, workdir: str) -> Profile:
    """The hook that --profile=START:STOP asks for.

    Raises:
      UserError: the text is not that.
    """
    match = re.fullmatch(r'(\d+):(\d+)', text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f'--profile={text}: write START:STOP, two steps from 1, as in 20:30')
    return Profile(int(match[1]), int(match[2]), Path(workdir).expanduser().absolute())
