"""Several processes that run one program: what process 0 does alone, failing and stopping together.

Where one process raises and the others go on, these wait for it in the next collective. So whatever
may fail on one process alone is agreed upon. With one process nothing here costs anything. All
processes must call these functions in the same order.
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

_WRITING = 20.0  # seconds that a checkpoint which is being written has after a signal
_BLOCK = 1024  # bytes; texts are padded to multiples of it, so that few shapes are compiled


def is_first() -> bool:
    """True if this is process 0, which alone writes logs."""
    return _alone() or jax.process_index() == 0


def _alone() -> bool:
    """True if there is one process; asked so that JAX gets no backend where it has none yet."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def share(value: Any) -> list[Any]:
    """Returns every process's value, in the order of the processes.

    Args:
      value: JSON.
    """
    if _alone():
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = process_allgather(np.int32(len(text)))
    padded = np.zeros(-(-int(lengths.max()) // _BLOCK) * _BLOCK, np.uint8)
    padded[: len(text)] = text
    rows = process_allgather(padded)
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def raise_together(mistake: str | None) -> None:
    """Raises UserError on all processes if one has something to complain of.

    Args:
      mistake: this process's, or None.
    """
    for process, text in enumerate(share(mistake)):
        if text is not None:
            raise UserError(text if _alone() else f'process {process}: {text}')


def together(action: Callable[[], T]) -> T:
    """Runs an action on every process; if it raises UserError on one of them, all raise it."""
    if _alone():
        return action()
    try:
        result = action()
    except UserError as e:
        raise_together(str(e))
        raise
    raise_together(None)
    return result


def on_first(action: Callable[[], Any]) -> Any:
    """Runs an action on process 0 alone; all get its JSON result, or raise its UserError."""
    if _alone():
        return action()
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
    """A signal came inside `StopSignals.interruptible`; its number is the argument."""


class StopSignals:
    """Catches SIGTERM and SIGINT, as a context manager: the first asks to stop, the second ends the process at once.

    Whoever stops says so with `answer`, and leaves in its own time. Inside `interruptible` a signal raises `Interrupted`.
    Where stopping would take minutes (`slow`: a step is being compiled, a split evaluated), `leave` ends the process
    after seconds, once what is done is safe. A signal that was not answered when the context ends is sent again: it is
    for whoever comes next.

    Outside the main thread, where Python can catch no signals, it does nothing. With several
    processes SIGTERM is JAX's: it tells the others, and they agree on the step to stop at
    (`Checkpoints.reached_preemption`). A Python handler would exclude it, so Ctrl-C is passed on.

    Attributes:
      received: the signal's number, or None.
      slow: whether what runs takes too long to be waited for.
    """

    current: 'StopSignals | None' = None  # the one that catches signals now

    def __init__(self, make_safe: Callable[[], object] = lambda: None) -> None:
        """Catches nothing yet.

        Args:
          make_safe: waits until what is being written is complete; called in another thread before `leave` leaves.
        """
        self.received: int | None = None
        self.slow = True
        self._raises = False
        self._make_safe = make_safe
        self._answered = threading.Event()
        # Held by the thread that ends the run: the main one, or that of `leave`.
        self._ending = threading.RLock()
        self._shared = jax.distributed.is_initialized()

    def __enter__(self) -> 'StopSignals':
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._receive)
            StopSignals.current = self
        return self

    def __exit__(self, *_) -> None:
        if StopSignals.current is self:
            StopSignals.current = None
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self.received in self._before and not self._answered.is_set():
            self._answered.set()
            os.kill(os.getpid(), self.received)

    def asked(self, step: int, reached_preemption: Callable[[int], bool]) -> int | None:
        """Returns the signal that asks to stop after a step, on all processes alike, or None.

        Args:
          step: to be asked about every one.
          reached_preemption: asks JAX, where there are several processes.
        """
        if not self._shared:
            return self.received
        return (self.received or signal.SIGTERM) if reached_preemption(step) else None

    @property
    def asked_alone(self) -> int | None:
        """The signal that came meanwhile, where there is one process."""
        return None if self._shared else self.received

    @contextmanager
    def interruptible(self, make_safe: Callable[[], object]) -> Iterator[None]:
        """Raises `Interrupted` in the block as soon as Python runs in it, where there is one process.

        Args:
          make_safe: keeps what is done until now; in the block in place of the context's.
        """
        before = self.slow, self._make_safe
        self.slow, self._make_safe, self._raises = True, make_safe, True
        try:
            if self.received is not None:
                self._interrupt()
            yield
        finally:
            (self.slow, self._make_safe), self._raises = before, False

    def _interrupt(self) -> None:
        if self._raises and not self._shared:
            self._raises = False
            raise Interrupted(self.received)

    def answer(self) -> None:
        """Says that what the signal asks for is being done: the process is left in peace until it ends."""
        self._ending.acquire()  # if `leave` has begun to end the process, that is the end
        self._answered.set()

    def leave(self, signum: int, seconds: float) -> None:
        """Ends the process if what runs is slow and goes on for so many seconds; for another thread than the main one."""
        while not (self._shared or self._answered.wait(seconds)):
            if self.slow and self._ending.acquire(blocking=False):
                safe = threading.Thread(target=self._wait_quietly, daemon=True)
                safe.start()
                safe.join(_WRITING)
                startup.exit_at_once(128 + signum)

    def _wait_quietly(self) -> None:
        with suppress(Exception):  # the process ends: what could not be written is not there
            self._make_safe()

    def _receive(self, signum: int, frame: object) -> None:
        if self.received is not None:
            startup.exit_at_once(128 + signum)
        self.received = signum
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
        self._interrupt()
