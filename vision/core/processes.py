"""Coordination of several processes that run one program: shared values, errors and signals.

If one process raised an exception and the others continued, they would wait for it in the next
collective operation. The processes therefore exchange the outcome of each operation that may fail
on one of them alone. All processes must call these functions in the same order. With a single
process, the functions cost nothing.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import jax
import numpy as np

from vision.core import startup
from vision.core.errors import UserError

T = TypeVar('T')

_WRITING = 20.0  # seconds to finish writing a checkpoint after a signal
_BLOCK = 1024  # bytes; texts are padded to multiples of it, so that JAX compiles few shapes


def is_first() -> bool:
    """True if this is process 0, the main process, which writes the logs."""
    return _alone() or jax.process_index() == 0


def _alone() -> bool:
    """True if there is only one process."""
    # Ask `is_initialized` first: `process_count` would start a JAX backend.
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def share(value: Any) -> list[Any]:
    """Returns the values of all processes, in the order of the processes.

    Args:
      value: this process's value; it must be serialisable as JSON.
    """
    if _alone():
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    # Gather the values as UTF-8 bytes, padded to the length of the longest.
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = process_allgather(np.int32(len(text)))
    padded = np.zeros(-(-int(lengths.max()) // _BLOCK) * _BLOCK, np.uint8)
    padded[: len(text)] = text
    rows = process_allgather(padded)
    # Cut off the padding.
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def raise_together(mistake: str | None) -> None:
    """Raises UserError on all processes if one of them reports a mistake.

    Args:
      mistake: the message of this process, or None.
    """
    for process, text in enumerate(share(mistake)):
        if text is not None:
            raise UserError(text if _alone() else f'process {process}: {text}')


def together(action: Callable[[], T]) -> T:
    """Runs an action on every process; if it raises UserError on one, all processes raise it."""
    if _alone():
        return action()
    try:
        result = action()
    except UserError as e:
        # Tell the other processes, then raise the original error.
        raise_together(str(e))
        raise
    raise_together(None)
    return result


def on_first(action: Callable[[], Any]) -> Any:
    """Runs an action on process 0 only; all processes return its result or raise its UserError.

    The result must be serialisable as JSON.
    """
    if _alone():
        return action()
    # Run the action on process 0, and share its result or its error.
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome['result'] = action()
        except UserError as e:
            outcome['mistake'] = str(e)
    outcome = share(outcome)[0]
    if 'mistake' in outcome:
        raise UserError(outcome['mistake'])
    return outcome['result']


class Interrupted(BaseException):
    """Raised by a signal inside `StopSignals.interruptible`; its argument is the signal number."""


class StopSignals:
    """Context manager that catches SIGTERM and SIGINT.

    The first signal asks the code to stop; the second ends the process at once. Code that stops
    calls `answer` and then has as much time as it needs. Inside `interruptible` a signal raises
    `Interrupted`. While a slow operation runs, such as a compilation or an evaluation (`slow` is
    true), `leave` calls `make_safe` and ends the process within seconds. If a signal is unanswered
    when the context ends, the signal is sent again, so that the code after the block receives it.

    Outside the main thread, where Python cannot catch signals, it does nothing. With several
    processes, JAX handles SIGTERM and makes all processes stop after the same step
    (`Checkpoints.reached_preemption`). A Python handler of SIGTERM would replace JAX's, so only
    SIGINT is caught, and the process sends itself SIGTERM instead.

    Attributes:
      received: the signal's number, or None.
      slow: True while an operation runs that takes too long to wait for.
    """

    current: 'StopSignals | None' = None  # the instance whose context is active

    def __init__(self, make_safe: Callable[[], object] = lambda: None) -> None:
        """Creates the context; it catches signals from `__enter__` on.

        Args:
          make_safe: waits until pending writes are complete. `leave` calls it in another thread
            before it ends the process.
        """
        self.received: int | None = None
        self.slow = True
        self._raises = False
        self._make_safe = make_safe
        self._answered = threading.Event()
        # Held by the thread that ends the run: the main thread or the one that runs `leave`.
        self._ending = threading.RLock()
        self._shared = jax.distributed.is_initialized()

    def __enter__(self) -> 'StopSignals':
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # With several processes SIGTERM belongs to JAX.
            for signum in (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._receive)
            StopSignals.current = self
        return self

    def __exit__(self, *_) -> None:
        if StopSignals.current is self:
            StopSignals.current = None
        # Restore the previous handlers, and send an unanswered signal again.
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self.received in self._before and not self._answered.is_set():
            self._answered.set()
            os.kill(os.getpid(), self.received)

    def asked(self, step: int, reached_preemption: Callable[[int], bool]) -> int | None:
        """Returns the signal that asks to stop after a step, or None; the same on all processes.

        Args:
          step: the current step; must be called for every step.
          reached_preemption: used with several processes (`Checkpoints.reached_preemption`).
        """
        if not self._shared:
            return self.received
        return (self.received or signal.SIGTERM) if reached_preemption(step) else None

    @property
    def asked_alone(self) -> int | None:
        """The signal received so far, if this is the only process; None otherwise."""
        return None if self._shared else self.received

    @contextmanager
    def interruptible(self, make_safe: Callable[[], object]) -> Iterator[None]:
        """Makes signals raise `Interrupted` inside the block, if this is the only process.

        Python raises it as soon as the main thread runs Python code again.

        Args:
          make_safe: saves the progress so far; used in the block instead of the context's.
        """
        # The block is slow and has its own `make_safe`.
        before = self.slow, self._make_safe
        self.slow, self._make_safe, self._raises = True, make_safe, True
        try:
            if self.received is not None:  # a signal arrived before the block
                self._interrupt()
            yield
        finally:
            (self.slow, self._make_safe), self._raises = before, False

    def _interrupt(self) -> None:
        """Raises `Interrupted`, at most once in a block."""
        if self._raises and not self._shared:
            self._raises = False
            raise Interrupted(self.received)

    def answer(self) -> None:
        """Declares that the code is stopping; from now on `leave` does not end the process."""
        self._ending.acquire()  # never returns if `leave` is already ending the process
        self._answered.set()

    def leave(self, signum: int, seconds: float) -> None:
        """Ends the process if a slow operation is still running after some seconds.

        Runs in a thread other than the main thread.

        Args:
          signum: the signal that was received.
          seconds: time between two checks.
        """
        while not (self._shared or self._answered.wait(seconds)):
            if self.slow and self._ending.acquire(blocking=False):
                # Limit the time of `make_safe`, which may hang.
                safe = threading.Thread(target=self._wait_quietly, daemon=True)
                safe.start()
                safe.join(_WRITING)
                startup.exit_at_once(128 + signum)

    def _wait_quietly(self) -> None:
        """Calls `make_safe`, ignoring its errors: the process ends in any case."""
        with suppress(Exception):
            self._make_safe()

    def _receive(self, signum: int, frame: object) -> None:
        """The signal handler."""
        # A second signal ends the process at once.
        if self.received is not None:
            startup.exit_at_once(128 + signum)
        self.received = signum
        if self._shared:  # JAX tells the other processes
            os.kill(os.getpid(), signal.SIGTERM)
        self._interrupt()
