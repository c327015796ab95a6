"""Outputs of a model, batch by batch."""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.evaluation.run import Run
from vision.prediction.feed import Fed


class Stream:
    """Computes functions of batches, each compiled once a shape."""

    def __init__(self, run: Run):
        """Takes a run, for its mesh and what its model is fed."""
        self._run = run
        self._compiled: dict[Any, Callable] = {}

    def __call__(
        self, variables: Any, fed: Fed, function: Callable, extra: np.ndarray | None = None
    ) -> Iterator[tuple[int, Any, np.ndarray]]:
        """Computes a function of every batch, one batch ahead of what is read back.

        Args:
          variables: what the function gets first.
          fed: the images.
          function: (variables, images [B, …]) → a tree of arrays [B, …].
          extra: a third argument [N, …], cut and padded to each batch.

        Yields:
          The index of the first image, what was computed of the n images of the batch, [n, …],
          and their mask [n]; padding is cut off.
        """
        compiled = self.jit(function)

        def compute() -> Iterator[Any]:
            start = 0
            for batch in fed.batches:
                self._check_shape(batch['image'].shape[1:])
                size = len(batch['mask'])
                arguments = [variables, batch['image']]
                if extra is not None:
                    rows = np.zeros((size, *extra.shape[1:]), extra.dtype)
                    rows[: len(extra) - start] = extra[start : start + size]
                    arguments.append(rows)
                yield compiled(*arguments), batch['mask']
                start += size

        start = 0
        for outputs, mask in map(jax.device_get, _one_behind(compute())):
            real = slice(fed.num_examples - start)
            yield start, jax.tree.map(operator.itemgetter(real), outputs), mask[real]
            start += len(mask)

    def jit(self, function: Callable) -> Callable:
        """The function under jit, the same one each time: it is compiled once a shape."""
        parts = function if isinstance(function, functools.partial) else functools.partial(function)
        key = (parts.func.__name__, *sorted(parts.keywords.items()))
        layout = mesh_lib.replicated(self._run.mesh)
        return self._compiled.setdefault(key, jax.jit(function, out_shardings=layout))

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != self._run.input_shape:
            raise UserError(
                f'preprocessing makes images of {list(shape)}; '
                f'the model was trained on {list(self._run.input_shape)}'
            )


def _one_behind(items: Iterable[Any]) -> Iterator[Any]:
    """Passes items on when the next one was asked for: the device computes while the host reads."""
    previous = None
    for item in items:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous
