"""Profiling and debugging hooks: `--profile=START:STOP` and `--debug=nans,no_jit,transfers`."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax

from vision.core.errors import UserError, unknown
from vision.core.workdir import locate
from vision.preprocess.device import Batch
from vision.training.hooks import Hook
from vision.training.step import Metrics

DEBUG = ('nans', 'no_jit', 'transfers')


class Profile(Hook):
    """Traces steps START to STOP into `workdir/plugins/profile/`, in each process."""

    def __init__(self, first: int, last: int, workdir: Path):
        """Stores the range of steps; `before_step` starts the trace.

        Args:
          first: first step to trace, from 1.
          last: last step to trace, inclusive.
          workdir: workdir of the run.
        """
        self._first, self._last, self._workdir = first, last, workdir
        self._step: jax.profiler.StepTraceAnnotation | None = None  # set while tracing
        self._traced = 0  # number of traced steps

    def before_step(self, step: int) -> None:
        """Starts the trace at START, or later if the run resumes between START and STOP."""
        if self._first <= step <= self._last:
            if self._step is None:
                jax.profiler.start_trace(str(self._workdir), create_perfetto_trace=True)
            self._step = jax.profiler.StepTraceAnnotation('train', step_num=step)
            self._step.__enter__()

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Ends the trace when the device has finished the last step."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._traced += 1
            # Wait for the device, or the trace would miss the end of the step.
            if step == self._last:
                jax.block_until_ready(metrics)
                self._stop()

    def __exit__(self, *_) -> None:
        if self._step is not None:
            self._stop()
        asked = self._last - self._first + 1
        if self._traced < asked:
            logging.warning(
                '--profile=%d:%d: %d of these %d steps were taken and traced',
                self._first,
                self._last,
                self._traced,
                asked,
            )

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._step = None


def profile(text: str, workdir: str) -> Profile:
    """Returns the hook for --profile=START:STOP.

    Raises:
      UserError: the text does not have that form.
    """
    match = re.fullmatch(r'(\d+):(\d+)', text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f'--profile={text}: write START:STOP, two steps from 1, like 20:30')
    return Profile(int(match[1]), int(match[2]), locate(workdir))


class NoTransfers(Hook):
    """Disallows implicit transfers between host and device while a batch loads and its step runs.

    The first step of a process is exempt, since it includes the compilation.
    """

    def __init__(self) -> None:
        """Starts without a guard."""
        self._guard: Any = nullcontext()
        self._compiled = False

    def before_step(self, step: int) -> None:
        """Enters the transfer guard."""
        if self._compiled:
            self._guard = jax.transfer_guard('disallow')
        self._guard.__enter__()

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Leaves the transfer guard, since hooks, records and checkpoints transfer on purpose."""
        self._compiled = True
        self.__exit__()

    def __exit__(self, *_) -> None:
        guard, self._guard = self._guard, nullcontext()
        guard.__exit__(None, None, None)


@contextmanager
def debugging(what: Sequence[str]) -> Iterator[list[Hook]]:
    """Context manager that enables debugging in the current thread.

    Args:
      what: names from DEBUG. `nans` stops at the first operation that makes a NaN, and names it;
        `no_jit` runs operations one by one, so that `print` and a debugger work inside a step;
        `transfers` adds the hook `NoTransfers`.

    Yields:
      The hooks to add to the run.

    Raises:
      UserError: an unknown name.
    """
    for name in what:
        if name not in DEBUG:
            raise unknown('--debug', name, DEBUG)
    # Use context managers: JAX 0.10 resets `jax_debug_nans` if `jax.config.update` has set it.
    with (
        jax.debug_nans(True) if 'nans' in what else nullcontext(),
        jax.disable_jit() if 'no_jit' in what else nullcontext(),
    ):
        yield [NoTransfers()] if 'transfers' in what else []
