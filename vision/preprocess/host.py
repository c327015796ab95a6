"""Transfer of host batches to the devices, with one or several processes."""

import collections
import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from vision.core import mesh as mesh_lib
from vision.core import processes
from vision.core.errors import UserError
from vision.preprocess.device import Batch

_AHEAD = 2  # batches that are transferred in advance


class HostBatches:
    """Iterator of this process's batches from the host pipeline.

    If one of several processes cannot read its data, it must not stop alone, because the others
    would wait for it in the next step. It continues with batches of mask 0 until all processes call
    `check`.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], count: int | None = None):
        """Stores the pipeline and the number of batches of each process; None is endless."""
        self._batches, self._left = batches, count
        self._last: dict[str, np.ndarray] | None = None
        self._mistake: str | None = None

    def __iter__(self) -> 'HostBatches':
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if jax.process_count() == 1:
            return next(self._batches)
        # Count the batches here, because all processes must end together.
        if self._left is not None:
            if not self._left:
                raise StopIteration
            self._left -= 1
        if self._last is None:  # without a previous batch all processes must stop together
            self._last = processes.together(lambda: next(self._batches))
        elif self._mistake is None:
            try:
                self._last = next(self._batches)
            except UserError as e:
                self._mistake = str(e)
        # After an error, repeat the last batch with mask 0.
        if self._mistake is not None:
            self._last = self._last | {'mask': np.zeros_like(self._last['mask'])}
        return self._last

    def check(self) -> None:
        """Raises UserError on all processes if one of them could not read its data."""
        processes.raise_together(self._mistake)


def prefetch(batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> Iterator[Batch]:
    """Transfers batches to the devices, `_AHEAD` batches in advance."""
    on_their_way: collections.deque[Batch] = collections.deque()
    batches = iter(batches)
    while True:
        # Fill the queue, then yield the oldest batch.
        for batch in itertools.islice(batches, _AHEAD + 1 - len(on_their_way)):
            on_their_way.append(mesh_lib.put_batch(batch, mesh))
        if not on_their_way:
            return
        yield on_their_way.popleft()
