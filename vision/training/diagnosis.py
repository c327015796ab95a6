"""Means to find what is slow or wrong in a run: `--profile=START:STOP` and `--debug=nans,no_jit,transfers`."""

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
        self._traced = 0  # steps

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
            self._traced += 1
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
    """The hook that --profile=START:STOP asks for.

    Raises:
      UserError: the text is not that.
    """
    match = re.fullmatch(r'(\d+):(\d+)', text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f'--profile={text}: write START:STOP, two steps from 1, as in 20:30')
    return Profile(int(match[1]), int(match[2]), locate(workdir))


class NoTransfers(Hook):
    """Refuses, within a step and its batch, transfers between host and device that were not asked for.

    The first step of a process is let go: it is compiled.
    """

    def __init__(self) -> None:
        """Guards nothing yet."""
        self._guard: Any = nullcontext()
        self._compiled = False

    def before_step(self, step: int) -> None:
        """Starts to guard."""
        if self._compiled:
            self._guard = jax.transfer_guard('disallow')
        self._guard.__enter__()

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Ends it: what the other hooks, records and checkpoints read is asked for."""
        self._compiled = True
        self.__exit__()

    def __exit__(self, *_) -> None:
        guard, self._guard = self._guard, nullcontext()
        guard.__exit__(None, None, None)


@contextmanager
def debugging(what: Sequence[str]) -> Iterator[list[Hook]]:
    """Switches debugging on within the block, for this thread.

    Args:
      what: of DEBUG. `nans` stops at the first operation that makes a NaN, and names it; `no_jit`
        runs each operation by itself, so that `print` and a debugger work in a step; `transfers`
        is `NoTransfers`.

    Yields:
      The hooks that belong to it.

    Raises:
      UserError: something else.
    """
    for name in what:
        if name not in DEBUG:
            raise unknown('--debug', name, DEBUG)
    # Not `jax.config.update`: JAX 0.10 forgets `jax_debug_nans` where it looks away for a moment.
    with (
        jax.debug_nans(True) if 'nans' in what else nullcontext(),
        jax.disable_jit() if 'no_jit' in what else nullcontext(),
    ):
        yield [NoTransfers()] if 'transfers' in what else []
