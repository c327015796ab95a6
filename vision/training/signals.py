"""SIGTERM and Ctrl-C: the first asks the loop to stop after its step, the second ends at once."""

import os
import signal
import threading


class StopSignals:
    """Catches SIGTERM and SIGINT, as a context manager.

    Outside the main thread, where Python can catch no signals, it does nothing.

    Attributes:
      received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> 'StopSignals':
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, frame: object) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
