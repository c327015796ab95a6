"""Runs `python -m MODULE ARGS…` in forks of a process that has already imported the libraries.

Imports are most of the time of a short command. The process forks before JAX has a backend, so that
a child has its own devices (XLA_FLAGS), threads and signal handlers, like a process that was
started from the shell.

Each line on stdin is a JSON request, each line on stdout a JSON answer:

    {"start": [MODULE, ARG, …], "env": {…}, "cwd": DIR, "stdout": FILE, "stderr": FILE}  →  {"pid":
    N} {"wait": N, "seconds": S}  →  {"code": exit code, or null if the process still runs}
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback

LIMIT = 600  # seconds after which a child is killed in any case


def main() -> None:
    """Serves requests until the end of stdin."""
    # The same setting as in `vision.core.startup.tf_cpu`, which each child calls itself.
    os.environ |= {'TF_CPP_MIN_LOG_LEVEL': '3', 'TF_ENABLE_ONEDNN_OPTS': '0'}
    import orbax.checkpoint  # noqa: F401
    import rich.console  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorboardX  # noqa: F401 - with it a client of Google's storage
    import tensorflow  # noqa: F401

    import vision.core.cli
    import vision.evaluation.evals
    import vision.prediction
    import vision.training  # noqa: F401

    gc.freeze()  # garbage collection in a child must not touch, and so copy, shared memory
    for line in sys.stdin:
        request = json.loads(line)
        answer = {'pid': _start(request)} if 'start' in request else {'code': _wait(**request)}
        print(json.dumps(answer), flush=True)


def _start(request: dict) -> int:
    child = os.fork()
    if child == 0:
        # The command sets these handlers itself, but on a busy machine some time after the fork.
        sys.modules['vision.core.startup'].leave_on_signals()
        signal.alarm(LIMIT)
        _redirect(0, os.devnull, os.O_RDONLY)
        _redirect(1, request['stdout'], os.O_WRONLY | os.O_CREAT)
        _redirect(2, request['stderr'], os.O_WRONLY | os.O_CREAT)
        os.environ.clear()
        os.environ.update(request['env'])
        os.chdir(request['cwd'])
        # The same order as for `python -m`: the working directory, then PYTHONPATH.
        paths = [request['cwd'], *request['env'].get('PYTHONPATH', '').split(os.pathsep)]
        sys.path[:0] = [path for path in paths if path]
        if 'PYTHONIOENCODING' in os.environ:
            encoding, _, errors = os.environ['PYTHONIOENCODING'].partition(':')
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(encoding=encoding, errors=errors or None)
        sys.argv = list(request['start'])
        _leave(_run_main(sys.argv[0]))
    return child


def _run_main(module: str) -> int:
    """Runs `python -m module` and returns the exit code of the interpreter."""
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return e.code or 0
        print(e.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave(code: int) -> None:
    """Ends a child like the interpreter, but without freeing all modules, which takes a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect(descriptor: int, file: str, flags: int) -> None:
    opened = os.open(file, flags)
    os.dup2(opened, descriptor)
    os.close(opened)


def _wait(wait: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(wait, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.01)


if __name__ == '__main__':
    main()
