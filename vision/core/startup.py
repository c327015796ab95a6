"""The start of a process, with settings before JAX and TensorFlow are used, and its end on signals; importing `vision` sets nothing.

Settings of a backend are registered here by the module that knows the backend (`vision/models/cpu/startup.py`). Commands
apply them: `at_start` first of all, then `tune` and `use_compilation_cache`.
"""

import contextlib
import functools
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_GRACE = 3.0  # seconds that the main thread has to leave after a signal

# Names the variables that `restart` has set.
_OURS = 'VISION_SET'

_AT_START: list[Callable[[], None]] = []
_BEFORE_JAX: list[Callable[[], None]] = []


def register(at_start: Callable[[], None], before_jax: Callable[[], None]) -> None:
    """Registers the settings of a backend.

    Args:
      at_start: called before anything else is done or imported; may `restart` the process.
      before_jax: called before JAX has a backend; may set XLA_FLAGS.
    """
    _AT_START.append(at_start)
    _BEFORE_JAX.append(before_jax)


def at_start() -> None:
    """Applies the registered settings that a process gets at its start; may start this process again."""
    for apply in _AT_START:
        apply()


def leave_on_signals() -> None:
    """Lets SIGTERM and SIGINT end the process without a word, until the command takes over: nothing has been done."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, frame: exit_at_once(128 + signum))


def exit_at_once(code: int) -> None:
    """Ends the process without unwinding; a terminal gets its cursor back, which progress bars hide."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, b'\r\x1b[K\x1b[?25h')
    os._exit(code)


def let_go_of_stdout() -> None:
    """Writes what is left to stdout; if nobody reads it any more (`| head`), lets go of it without a word."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Leaving:
    """Ends the process within seconds of SIGTERM or SIGINT, whatever it is doing.

    The first signal raises SystemExit or KeyboardInterrupt in the main thread; a second one ends the process at once.
    The main thread may be in code that does not come back for minutes, as XLA's while it compiles, or wait for threads
    that do not: a thread gives it a few seconds, and then leaves; where Python drops the exception, the thread sends the
    signal again. While modules are imported nothing is lost, and
    extensions would print a traceback: the process ends at once. A part of a program that has handlers of its own, as
    the training loop, leaves as it sees fit.
    """

    received: int | None = None
    _dropped = False

    @classmethod
    def start(cls) -> None:
        """Installs the handlers, in the main thread."""
        cls.received = None
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, cls._leave)
        sys.unraisablehook = cls._note_dropped
        cls.watch()

    @classmethod
    def watch(cls) -> None:
        """Starts the thread that leaves where the main thread does not; a fork needs one of its own."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=cls._watch, args=(reading,), daemon=True).start()

    @classmethod
    def finish(cls) -> None:
        """Ends the process if a signal came: threads of libraries, as a server's, would be waited for."""
        if cls.received is not None:
            sys.stderr.flush()
            exit_at_once(128 + cls.received)
        leave_on_signals()  # an exception would interrupt the interpreter's own end with a traceback

    @classmethod
    def _leave(cls, signum: int, frame: types.FrameType | None) -> None:
        if cls.received is not None or _is_importing(frame):
            exit_at_once(128 + signum)
        cls.received = signum
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + signum)

    @classmethod
    def _note_dropped(cls, failed: Any) -> None:
        """Notes that Python dropped what a signal raised, as it does in callbacks of the garbage collector."""
        if isinstance(failed.exc_value, Exception):
            sys.__unraisablehook__(failed)
        else:
            cls._dropped = True

    @classmethod
    def _watch(cls, reading: int) -> None:
        while received := os.read(reading, 1):
            signum = received[0]
            if signal.getsignal(signum) == cls._leave:
                end = time.monotonic() + _GRACE
                while time.monotonic() < end:
                    time.sleep(_GRACE / 50)
                    if cls._dropped:
                        cls.received, cls._dropped = None, False
                        os.kill(os.getpid(), signum)
                exit_at_once(128 + signum)
            processes = sys.modules.get('vision.core.processes')  # which imports JAX
            if processes is not None and processes.StopSignals.current is not None:
                processes.StopSignals.current.leave(signum, _GRACE)


def _is_importing(frame: types.FrameType | None) -> bool:
    """True if a module is being imported where the main thread is."""
    while frame is not None:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            return True
        frame = frame.f_back
    return False


def tune() -> None:
    """Applies the registered settings of XLA; to be called before JAX has a backend."""
    for apply in _BEFORE_JAX:
        apply()


def restart(**variables: str) -> None:
    """Starts this process again with environment variables that are read at a process's start only.

    To be called before anything is done or imported, and only if a variable is not set yet.
    """
    environment = os.environ | variables | {_OURS: ' '.join(variables)}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def shipped_environment() -> dict[str, str]:
    """The environment without what `restart` has set: for a peer, as its users run it."""
    ours = {_OURS, *os.environ.get(_OURS, '').split()}
    return {k: v for k, v in os.environ.items() if k not in ours}


def use_compilation_cache() -> None:
    """Keeps what XLA compiles in the user's cache folder, so that a second start is quick.

    Where it is: JAX_COMPILATION_CACHE_DIR, if that is set (empty: nowhere), otherwise
    `vision-jax` in XDG_CACHE_HOME or ~/.cache. The bits of a run do not depend on it.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = Path(home) / 'vision-jax'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: compile each time
        return
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    if 'jax' in sys.modules:
        sys.modules['jax'].config.update('jax_compilation_cache_dir', str(folder))


@functools.cache
def tf_cpu() -> ModuleType:
    """Imports TensorFlow when it is first needed, silent, and returns it; it sees no accelerator: those belong to JAX.

    Raises:
      RuntimeError: TensorFlow was used before and holds an accelerator already.
    """
    # TensorFlow prints a traceback for each image that cannot be decoded, though it is caught. JAX
    # has set the level to 1 for itself by now.
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    # oneDNN announces itself on stderr, and its sums depend on the machine.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    import tensorflow as tf

    for kind in ('GPU', 'TPU'):
        tf.config.set_visible_devices([], kind)
    tf.get_logger().setLevel('ERROR')
    return tf


def first_line(error: Exception) -> str:
    """The text of an error, without TensorFlow's names of nodes and ops around it."""
    text = (str(error) or type(error).__name__).strip().split('\n')[0].strip('\'"')
    return re.sub(r'\{\{.*?\}\}\s*|\s*\[(\[|Op).*', '', text)
