"""Calls of a function in a child process, so that a crash of the function does not end the caller.

The caller gets the function's result, its exception, or the reason why the child process ended.
"""

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
# Modules that the fork server imports before it forks. Libraries are added only if this process
# has imported them already.
_PRELOADED = ['vision.training.loop', 'vision.evaluation.evals']
_LIBRARIES = ('sklearn.datasets', 'tensorflow')


class Died(Exception):
    """Raised when the child process ended without a result; the text is the reason in one line.

    Attributes:
      details: the traceback, if the function raised an exception.
    """

    details: str = ''


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a child process and returns its result.

    The child is a fork of this process if JAX has no backend in it. Otherwise a server process is
    started and forked, so that no device and no GPU memory is held twice. The first SIGINT or
    SIGTERM is passed on to the child; a second signal ends both processes.

    Args:
      function: a module-level function. The function, its arguments and its result must be
        picklable.
      *arguments: positional arguments of the function.

    Raises:
      UserError: the function raised it.
      Stopped: this process received a signal, passed it on, and the child has ended.
      Died: the child ended by another exception, by an exit, or by a signal (for example from the
        kernel when memory is exhausted).
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, function, arguments))
    with _Forwarded() as signals:
        # Start the child and wait for its answer; pass signals on during this time.
        with _empty_main():
            child.start()
        sender.close()
        signals.forward_to(child.pid)
        kind, value = _receive(receiver, child)
    # Check for a signal only after the previous handlers are restored, so that none is lost.
    if signals.received is not None:
        raise Stopped(signals.received, value if kind == 'stopped' else 'stopped')
    # Return the result, or raise the child's exception.
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
    """True if JAX has a backend in this process, and with it threads and device memory."""
    bridge = sys.modules.get('jax._src.xla_bridge')
    return bridge is not None and bridge.backends_are_initialized()


def _context() -> Any:
    """Returns a multiprocessing context whose children are forked without threads of JAX."""
    if sys.platform == 'linux' and not holds_devices():
        return multiprocessing.get_context('fork')
    # This process has threads, which a fork would break: fork a server process without them.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([*_PRELOADED, *(m for m in _LIBRARIES if m in sys.modules)])
    return context


@contextlib.contextmanager
def _empty_main() -> Iterator[None]:
    """Hides the main module from multiprocessing.

    Otherwise the server's children would import the user's script and thereby run it again.
    """
    main = sys.modules['__main__']
    sys.modules['__main__'] = types.ModuleType('__main__')
    try:
        yield
    finally:
        sys.modules['__main__'] = main


def _receive(receiver: connection.Connection, child: Any) -> tuple[str, Any]:
    """Waits until the child has ended; returns its answer or the reason why there is none."""
    try:
        answer = receiver.recv()
    except (EOFError, OSError):
        answer = None
    # Wait for the end of the process, so that it leaves no zombie.
    child.join()
    if answer is not None:
        return answer
    # The pipe was closed without an answer: find the reason in the exit code.
    if child.exitcode >= 0:
        return 'ended', f'its process ended with exit code {child.exitcode}'
    # A negative exit code is the number of the signal that ended the process.
    name = signal.Signals(-child.exitcode).name
    perhaps = '; it may have run out of memory' if name == 'SIGKILL' else ''
    return 'ended', f'its process was ended by {name}{perhaps}'


def _answer(sender: connection.Connection, function: Callable[..., Any], arguments: tuple) -> None:
    """Runs in the child process: calls the function and sends its result or its exception."""
    # Replace the signal handlers that the fork inherited.
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    startup.Leaving.watch()
    os.setpgid(0, 0)  # Ctrl-C on a terminal then reaches only the caller, which passes it on
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    # End this process when the caller ends, even if the caller is killed.
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
    # Send the answer and end at once.
    sender.send(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a normal exit would wait for threads that libraries never end


def _end_with_caller() -> None:
    """Sends SIGTERM to this process when its caller has died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class _Forwarded:
    """Passes the first signal on to the child; the second signal ends both processes.

    Signals are blocked from the start of the context until the child's process id is known.
    Outside the main thread it does nothing.
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
        """Sets the child's process id and delivers the signals that were blocked until now."""
        self._pid = pid
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def __exit__(self, *_) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        # If the child did not start, `forward_to` was not called and signals are still blocked.
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _receive(self, signum: int, frame: object) -> None:
        # The handler runs in the caller; the child has its own handlers.
        again = self.received is not None
        with contextlib.suppress(ProcessLookupError):  # the child has just ended
            os.kill(self._pid, signal.SIGKILL if again else signum)
        if again:
            startup.exit_at_once(128 + signum)
        self.received = signum
