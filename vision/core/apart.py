"""A function in a process of its own: whatever ends that process, the caller learns why and goes on."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

from vision.core import startup
from vision.core.errors import Stopped, UserError, in_a_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What the server imports, of the libraries what this process has imported.
_PRELOADED = ['vision.training.loop', 'vision.evaluation.evals']
_LIBRARIES = ('sklearn.datasets', 'tensorflow')


class Died(Exception):
    """The process ended without an answer; the text is the reason in one line.

    Attributes:
      details: the traceback, if it was an exception.
    """

    details: str = ''


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own and returns what it returns.

    The process is a fork of this one as long as JAX has no backend here (no device, no memory of a GPU is held
    twice), and else of a server that is started for it. SIGINT and SIGTERM are passed on once; a second signal
    ends both processes.

    Args:
      function: of a module; with its arguments and its result it can be pickled.
      *arguments: of the function.

    Raises:
      UserError: the function raised it.
      Stopped: this process got a signal; the function has been told and has ended.
      Died: another exception, an exit, or a signal (as of the kernel, for want of memory) ended the process.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, function, arguments))
    with _Forwarded() as signals:
        with _empty_main():
            child.start()
        sender.close()
        signals.forward_to(child.pid)
        kind, value = _receive(receiver, child)
    # Asked after the handlers are those of before, so that no signal is lost.
    if signals.received is not None:
        raise Stopped(signals.received, value if kind == 'stopped' else 'stopped')
    if kind == 'returned':
        return value
    if kind == 'mistaken':
        raise UserError(value)
    if kind == 'raised':
        error = Died(value[0])
        error.details = value[1]
        raise error
    raise Died(value)


def holds_devices() -> bool:
    """True if JAX has a backend in this process: its threads, and on a GPU its memory."""
    bridge = sys.modules.get('jax._src.xla_bridge')
    return bridge is not None and bridge.backends_are_initialized()


def _context() -> Any:
    """Forks are made of a process that JAX has no threads in: of this one, or of a clean server."""
    if sys.platform == 'linux' and not holds_devices():
        return multiprocessing.get_context('fork')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([*_PRELOADED, *(m for m in _LIBRARIES if m in sys.modules)])
    return context


@contextlib.contextmanager
def _empty_main() -> Iterator[None]:
    """Hides the main module: the server's children would import a user's script, which would start all over again."""
    main = sys.modules['__main__']
    sys.modules['__main__'] = types.ModuleType('__main__')
    try:
        yield
    finally:
        sys.modules['__main__'] = main


def _receive(receiver: connection.Connection, child: Any) -> tuple[str, Any]:
    """Waits for the answer, or for an end without one, and for the end of the process."""
    try:
        answer = receiver.recv()
    except (EOFError, OSError):
        answer = None
    child.join()
    if answer is not None:
        return answer
    if child.exitcode >= 0:
        return 'ended', f'its process ended with exit code {child.exitcode}'
    name = signal.Signals(-child.exitcode).name
    perhaps = '; the memory may not have sufficed' if name == 'SIGKILL' else ''
    return 'ended', f'its process was ended by {name}{perhaps}'


def _answer(sender: connection.Connection, function: Callable[..., Any], arguments: tuple) -> None:
    """Calls the function and sends what comes of it; runs in the new process."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    startup.Leaving.watch()
    os.setpgid(0, 0)  # Ctrl-C on a terminal reaches the caller alone, which passes it on
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        answer: tuple[str, Any] = 'returned', function(*arguments)
    except UserError as e:
        answer = 'mistaken', str(e)
    except Stopped as e:
        answer = 'stopped', str(e)
    except SystemExit as e:
        answer = 'ended', f'its code ended the process ({e.code})'
    except BaseException as e:
        answer = 'raised', (in_a_line(e), traceback.format_exc())
    sender.send(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of libraries that nobody ends would be waited for


def _end_with_caller() -> None:
    """Asks this process to stop when its caller has died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _Forwarded:
    """Passes the first signal on to a process and ends both with the second; outside the main thread does nothing.

    Signals wait from its start until it knows the process.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._pid = 0

    def __enter__(self) -> '_Forwarded':
        if threading.current_thread() is threading.main_thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            self._before = {s: signal.signal(s, self._receive) for s in _SIGNALS}
        return self

    def forward_to(self, pid: int) -> None:
        """Takes the process, and the signals that have waited for it."""
        self._pid = pid
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _receive(self, signum: int, frame: object) -> None:
        again = self.received is not None
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self._pid, signal.SIGKILL if again else signum)
        if again:
            startup.exit_at_once(128 + signum)
        self.received = signum
