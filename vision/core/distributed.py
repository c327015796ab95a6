"""JAX's multi-controller runtime: one process a machine (or a GPU), one program.

`jax.distributed` finds the others by itself under Slurm, Open MPI, on GKE and on Cloud TPU; plain
machines are told by flags or by the environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
JAX_PROCESS_ID). It must be called before anything touches a device.
"""

import os
import sys

from vision.core.errors import UserError

# Seconds without a sign of life after which a process counts as dead, and all end.
_HEARTBEAT_TIMEOUT = 30
_SHUTDOWN_TIMEOUT = 60  # seconds that a process which is through waits for the others
_VARIABLES = {'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes; returns when all are there.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: this one's, from 0.

    Raises:
      UserError: they do not fit together, nothing was found, or the others did not come.
    """
    import jax

    num_processes = _number('num_processes', num_processes)
    process_id = _number('process_id', process_id)
    coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
    if coordinator and ':' not in coordinator:
        raise UserError(f'--coordinator={coordinator}: write HOST:PORT')
    if process_id is not None and num_processes is not None and process_id >= num_processes:
        raise UserError(f'--process_id={process_id}: the ids are 0 to {num_processes - 1}')
    _own_stdout()
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
    except RuntimeError as e:  # the coordinator cannot be reached, or its port is taken
        raise UserError(f'--distributed: {str(e).splitlines()[0]}') from None


def leave(code: int) -> None:
    """Ends this process without waiting for the others: they may not be there any more.

    Leaving in the usual way waits for all to arrive, for minutes if one is dead.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _own_stdout() -> None:
    """Sends what C++ prints on stdout (Gloo tells of each connection) to stderr; Python keeps it."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, 'w', buffering=1)


def _number(name: str, value: int | None) -> int | None:
    text = os.environ.get(_VARIABLES[name])
    if value is not None or not text:
        return value
    if not text.isdecimal():
        raise UserError(f'{_VARIABLES[name]}={text!r} is not a number')
    return int(text)
