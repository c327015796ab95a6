"""Runs `python -m MODULE ARGS…` in forks of one process that has imported what they all import.

Most of a refused command's seconds are imports. The fork is made before JAX has a backend or any
thread of its own, so that what runs in it is what would run in a process of its own.

One JSON list of words a line comes in, one JSON object goes out: the exit code and what was printed.
"""

import json
import os
import runpy
import signal
import sys
import tempfile


def main() -> None:
    """Serves until its input ends."""
    import orbax.checkpoint  # noqa: F401
    import rich.console  # noqa: F401
    import sklearn.datasets  # noqa: F401

    import vision.training  # noqa: F401

    for line in sys.stdin:
        module, *args = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                signal.alarm(600)  # whatever hangs ends
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = [module, *args]
                runpy.run_module(module, run_name='__main__', alter_sys=True)
                sys.exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = [_text(file) for file in (out, err)]
        print(json.dumps([code, *texts]), flush=True)


def _text(file) -> str:
    file.seek(0)
    return file.read().decode()


if __name__ == '__main__':
    main()
