"""Several processes that run one program: what process 0 does alone, and failing together.

Where one process raises and the others go on, these wait for it in the next collective. So whatever
may fail on one process alone is agreed upon. With one process nothing here costs anything. All
processes must call these functions in the same order.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from vision.core.errors import UserError

T = TypeVar('T')

_BLOCK = 1024  # bytes; texts are padded to multiples of it, so that few shapes are compiled


def is_first() -> bool:
    """Whether this is process 0, which alone writes logs."""
    return _alone() or jax.process_index() == 0


def _alone() -> bool:
    """Whether there is one process; asked so that JAX gets no backend where it has none yet."""
    return not is_initialized() or jax.process_count() == 1


def share(value: Any) -> list[Any]:
    """Returns every process's value, in the order of the processes.

    Args:
      value: JSON.
    """
    if _alone():
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = process_allgather(np.int32(len(text)))
    padded = np.zeros(-(-int(lengths.max()) // _BLOCK) * _BLOCK, np.uint8)
    padded[: len(text)] = text
    rows = process_allgather(padded)
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def raise_together(mistake: str | None) -> None:
    """Raises UserError on all processes if one has something to complain of.

    Args:
      mistake: this process's, or None.
    """
    for process, text in enumerate(share(mistake)):
        if text is not None:
            raise UserError(text if _alone() else f'process {process}: {text}')


def together(action: Callable[[], T]) -> T:
    """Runs an action on every process; if it raises UserError on one of them, all raise it."""
    if _alone():
        return action()
    try:
        result = action()
    except UserError as e:
        raise_together(str(e))
        raise
    raise_together(None)
    return result


def on_first(action: Callable[[], Any]) -> Any:
    """Runs an action on process 0 alone; all get its JSON result, or raise its UserError."""
    if _alone():
        return action()
    outcome: dict[str, Any] = {}
    if is_first():
        try:
            outcome['result'] = action()
        except UserError as e:
            outcome['mistake'] = str(e)
    outcome = share(outcome)[0]
    if 'mistake' in outcome:
        raise UserError(outcome['mistake'])
    return outcome['result']


def is_initialized() -> bool:
    """Whether this process is one of several (or was started as one)."""
    return jax.distributed.is_initialized()
