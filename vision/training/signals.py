"""SIGTERM and Ctrl-C: the first asks the loop to stop after its step, the second ends at once."""

import os
import signal
import threading
from collections.abc import Callable

from vision.core import processes
from vision.core.errors import Stopped


class StopSignals:
    """Catches SIGTERM and SIGINT, as a context manager.

    Outside the main thread, where Python can catch no signals, it does nothing. With several
    processes SIGTERM is JAX's: it tells the others, and they agree on the step to stop at
    (`Checkpoints.reached_preemption`). A Python handler would exclude it, so Ctrl-C is passed on.

    Attributes:
      received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._shared = processes.is_initialized()

    def __enter__(self) -> 'StopSignals':
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self.received in self._before and kind is not Stopped:
            os.kill(
                os.getpid(), self.received
            )  # nobody has stopped for it: it is for whoever comes next

    def asked(self, step: int, reached_preemption: Callable[[int], bool]) -> int | None:
        """Returns the signal that asks to stop after a step, on all processes alike, or None.

        Args:
          step: to be asked about every one.
          reached_preemption: asks JAX, where there are several processes.
        """
        if not self._shared:
            return self.received
        return (self.received or signal.SIGTERM) if reached_preemption(step) else None

    def _receive(self, signum: int, frame: object) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
