"""JAX's own means of finding what is wrong, by flag: `--debug=nans,no_jit,transfers`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax

from vision.core.errors import unknown
from vision.preprocess.device import Batch
from vision.training.hooks import Hook
from vision.training.step import Metrics

DEBUG = ('nans', 'no_jit', 'transfers')


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
