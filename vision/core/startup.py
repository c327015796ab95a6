"""Process start (settings of JAX and TensorFlow) and the end of a process on signals.

Modules that know a backend register its settings here (`vision/models/cpu/startup.py`). Commands
apply them: first `at_start`, then `tune` and `use_compilation_cache`. Importing `vision` changes no
settings.
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

_GRACE = 3.0  # seconds that the main thread has to end after a signal

# JAX's option of the shortest compilation that the cache keeps, and our value in seconds. JAX's
# default, 1 second, leaves out most programs of a small model.
_SHORTEST, _KEPT_FROM = 'jax_persistent_cache_min_compile_time_secs', 0.1

# Name of the environment variable that lists the names of the variables that `restart` has set.
_OURS = 'VISION_SET'

_AT_START: list[Callable[[], None]] = []
_BEFORE_JAX: list[Callable[[], None]] = []


def register(at_start: Callable[[], None], before_jax: Callable[[], None]) -> None:
    """Registers the settings of a backend.

    Args:
      at_start: called before any other work and import; may `restart` the process.
      before_jax: called before JAX has a backend; may set XLA_FLAGS.
    """
    _AT_START.append(at_start)
    _BEFORE_JAX.append(before_jax)


def at_start() -> None:
    """Applies the registered settings for the start of a process; may restart this process."""
    for apply in _AT_START:
        apply()


def leave_on_signals() -> None:
    """Makes SIGTERM and SIGINT end the process silently until the command sets its own handlers."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, frame: exit_at_once(128 + signum))


def exit_at_once(code: int) -> None:
    """Ends the process without unwinding; restores the terminal's cursor, which bars hide."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, b'\r\x1b[K\x1b[?25h')
    os._exit(code)


def let_go_of_stdout() -> None:
    """Flushes stdout; if its reader has ended (`| head`), discards the rest without an error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Leaving:
    """Ends the process within seconds of SIGTERM or SIGINT, in any state.

    The first signal raises SystemExit or KeyboardInterrupt in the main thread; a second one ends
    the process at once. During imports even the first signal ends the process at once, because no
    work is lost and extension modules would otherwise print a traceback.

    The main thread may be in code that does not return for minutes, such as XLA's compiler, or may
    wait for other threads. A watcher thread therefore ends the process after a few seconds. If
    Python dropped the exception, the watcher sends the signal again. Code with its own signal
    handlers, such as the training loop, determines the time of its end itself.
    """

    received: int | None = None
    _dropped = False

    @classmethod
    def start(cls) -> None:
        """Installs the handlers, in the main thread."""
        cls.received = None
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, cls._leave)
        # Notice when Python drops the exception that a signal raised.
        sys.unraisablehook = cls._note_dropped
        cls.watch()

    @classmethod
    def watch(cls) -> None:
        """Starts the watcher thread; a forked process must call this again."""
        # Python writes the number of each signal into this pipe.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=cls._watch, args=(reading,), daemon=True).start()

    @classmethod
    def finish(cls) -> None:
        """Ends the process if a signal came; a normal exit would wait for threads of libraries."""
        if cls.received is not None:
            sys.stderr.flush()
            exit_at_once(128 + cls.received)
        leave_on_signals()  # an exception would interrupt the interpreter's exit with a traceback

    @classmethod
    def _leave(cls, signum: int, frame: types.FrameType | None) -> None:
        """The signal handler."""
        # Second signals, and signals during imports, end the process.
        if cls.received is not None or _is_importing(frame):
            exit_at_once(128 + signum)
        cls.received = signum
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + signum)

    @classmethod
    def _note_dropped(cls, failed: Any) -> None:
        """Records that Python dropped a signal's exception, as it does in garbage collection."""
        if isinstance(failed.exc_value, Exception):
            sys.__unraisablehook__(failed)
        else:
            cls._dropped = True

    @classmethod
    def _watch(cls, reading: int) -> None:
        """Runs in the watcher thread; reads the numbers of the signals that Python received."""
        while received := os.read(reading, 1):
            signum = received[0]
            if signal.getsignal(signum) == cls._leave:
                # Give the main thread some seconds to end.
                end = time.monotonic() + _GRACE
                while time.monotonic() < end:
                    time.sleep(_GRACE / 50)
                    # Python dropped the exception: send the signal again.
                    if cls._dropped:
                        cls.received, cls._dropped = None, False
                        os.kill(os.getpid(), signum)
                exit_at_once(128 + signum)
            # Look the module up instead of importing it: it imports JAX.
            processes = sys.modules.get('vision.core.processes')
            if processes is not None and processes.StopSignals.current is not None:
                processes.StopSignals.current.leave(signum, _GRACE)


def _is_importing(frame: types.FrameType | None) -> bool:
    """True if a frame, or one that called it, imports a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            return True
        frame = frame.f_back
    return False


def tune() -> None:
    """Applies the registered settings of XLA; must be called before JAX has a backend."""
    for apply in _BEFORE_JAX:
        apply()


def restart(**variables: str) -> None:
    """Restarts this process with environment variables that are read only at process start.

    Must be called before any other work and import, and only if a variable is not set yet.
    """
    # Record the names, so that `shipped_environment` can remove them.
    environment = os.environ | variables | {_OURS: ' '.join(variables)}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def available_cpus() -> int:
    """Returns the number of CPUs that this process may use."""
    # macOS has no affinity.
    affinity = getattr(os, 'sched_getaffinity', None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def shipped_environment() -> dict[str, str]:
    """Returns the environment without the variables that `restart` has set.

    Benchmarks run other frameworks in this environment, as the users of those frameworks do.
    """
    ours = {_OURS, *os.environ.get(_OURS, '').split()}
    return {k: v for k, v in os.environ.items() if k not in ours}


def use_compilation_cache() -> None:
    """Enables JAX's persistent compilation cache, so that a second start is quick.

    The folder is JAX_COMPILATION_CACHE_DIR if that is set (empty turns the cache off), otherwise
    `vision-jax` in XDG_CACHE_HOME or ~/.cache. The results of a run do not depend on the cache.
    """
    settings: dict[str, Any] = {}
    if _SHORTEST.upper() not in os.environ:
        settings[_SHORTEST] = _KEPT_FROM
    if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
        folder = Path(home) / 'vision-jax'
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # the home folder is read-only: use no cache
            return
        settings['jax_compilation_cache_dir'] = str(folder)
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        # JAX has read the variables already, so set its options as well.
        if 'jax' in sys.modules:
            sys.modules['jax'].config.update(name, value)


@functools.cache
def tf_cpu() -> ModuleType:
    """Imports TensorFlow on first use, silenced and limited to the CPU, and returns it.

    Accelerators are left to JAX.

    Raises:
      RuntimeError: TensorFlow was used before and already holds an accelerator.
    """
    # TensorFlow prints a traceback for each image that cannot be decoded, even if the error is
    # caught. A level of 1 is treated as JAX's, because JAX sets this level when it is imported.
    if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
        os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    # oneDNN prints a notice on stderr, and the order of its sums depends on the machine.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    import tensorflow as tf

    # Leave all accelerators to JAX.
    for kind in ('GPU', 'TPU'):
        tf.config.set_visible_devices([], kind)
    tf.get_logger().setLevel('ERROR')
    return tf


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text without TensorFlow's names of nodes and ops."""
    text = (str(error) or type(error).__name__).strip().split('\n')[0].strip('\'"')
    return re.sub(r'\{\{.*?\}\}\s*|\s*\[(\[|Op).*', '', text)
