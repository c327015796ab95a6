"""Start and end of JAX's multi-controller runtime: one process per machine or GPU runs one program.

`jax.distributed` finds the other processes automatically under Slurm and Open MPI, on GKE and on
Cloud TPU. Elsewhere they are given by flags or by environment variables (JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES, JAX_PROCESS_ID). `initialize` must be called before any device is used.
"""

import os
import sys

from vision.core.errors import UserError

# Seconds without a heartbeat after which a process counts as dead and all processes end.
_HEARTBEAT_TIMEOUT = 30
_SHUTDOWN_TIMEOUT = 60  # seconds that a process waits at its end for the others
_VARIABLES = {'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes; returns when all of them have joined.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes of the run.
      process_id: number of this process, from 0.

    Raises:
      UserError: the arguments are inconsistent, no cluster was recognised, or the other processes
        did not join.
    """
    import jax

    # Complete the arguments from the environment and check them.
    num_processes = _number('num_processes', num_processes)
    process_id = _number('process_id', process_id)
    coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
    if coordinator and ':' not in coordinator:
        raise UserError(f'--coordinator={coordinator}: write HOST:PORT')
    if process_id is not None and num_processes is not None and process_id >= num_processes:
        raise UserError(f'--process_id={process_id}: the ids are 0 to {num_processes - 1}')
    _own_stdout()
    # JAX's cluster detection finds the values that are still None.
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except ValueError as e:
        raise UserError(
            f'--distributed: {e} No cluster was recognised: give --coordinator=HOST:PORT, '
            '--num_processes=N and --process_id=I'
        ) from None
    except RuntimeError as e:  # the coordinator cannot be reached, or its port is in use
        raise UserError(f'--distributed: {str(e).splitlines()[0]}') from None


def leave(code: int) -> None:
    """Ends this process without waiting for the others, which may have died.

    A normal exit waits until all processes end, for minutes if one of them is dead.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _own_stdout() -> None:
    """Redirects the output of C++ code to stderr; Python keeps writing to stdout.

    Gloo prints a line for each connection.
    """
    sys.stdout.flush()
    # Python gets a copy of stdout; file descriptor 1 then leads to stderr.
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, 'w', buffering=1)


def _number(name: str, value: int | None) -> int | None:
    """Returns `value`, or else the number in the environment variable of that argument."""
    text = os.environ.get(_VARIABLES[name])
    if value is not None or not text:
        return value
    if not text.isdecimal():
        raise UserError(f'{_VARIABLES[name]}={text!r} is not a number')
    return int(text)
