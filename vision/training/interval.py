"""What is known of the steps since the last record: sums of their metrics, and their time."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from vision.training.step import Metrics

LATEST = ('lr', 'grad_norm', 'param_norm')  # the last step's; all others are added up


class Interval:
    """Accumulates the metrics of training steps between two records.

    They stay on the device until a record or a checkpoint is written. They are added in float64 in
    the order of the steps, so the sums do not depend on where a run was interrupted.
    """

    def __init__(self, saved: dict[str, float] | None = None, first: str = ''):
        """Starts empty, or with what `to_json` returned.

        Args:
          saved: of a checkpoint.
          first: the name of the task's first metric: older checkpoints call its sum 'correct'.
        """
        self._sums = {first if k == 'correct' else k: v for k, v in (saved or {}).items()}
        self._pending: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes a step's metrics, without reading them."""
        self._pending.append((step, metrics))

    def read(self) -> int | None:
        """Reads what is pending; returns the first step whose loss or parameters are not finite."""
        pending, self._pending = self._pending, []
        values = jax.device_get([metrics for _, metrics in pending])
        for (step, _), metrics in zip(pending, values, strict=True):
            if not metrics.pop('finite'):
                return step
            for key, value in metrics.items():
                before = 0.0 if key in LATEST else self._sums.get(key, 0.0)
                self._sums[key] = before + float(value)
        return None

    def record(self) -> dict[str, float]:
        """Returns the interval's record, of what was read, and starts the next interval."""
        sums, self._sums = self._sums, {}
        count = max(sums.pop('count', 0.0), 1.0)
        return {f'train/{k}': v if k in LATEST else v / count for k, v in sums.items()}

    def to_json(self) -> dict[str, float]:
        """What a checkpoint keeps of the interval."""
        assert not self._pending, 'read() comes first'
        return self._sums


class Clock:
    """Times the steps of an interval, without the compilation and without what is not a step."""

    def __init__(self) -> None:
        self._born = time.perf_counter()
        self._seconds_per_step = math.nan
        self.restart()

    def restart(self) -> None:
        """Starts an interval now."""
        self._begin = time.perf_counter()
        self._steps, self._waited = 0, 0.0

    def step(self) -> None:
        """Counts a step."""
        self._steps += 1

    @contextmanager
    def waiting(self, running: Metrics | None) -> Iterator[None]:
        """Counts the time of the block as spent waiting for data, unless a step ran all the while.

        Args:
          running: the metrics of the last step, which may still be computed; None before the first.
        """
        with _timed(lambda seconds: self._count_wait(seconds, running)):
            yield

    def _count_wait(self, seconds: float, running: Metrics | None) -> None:
        values = running.values() if running else ()
        if all(value.is_ready() for value in values):  # type: ignore[attr-defined]
            self._waited += seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves the time of the block out of the interval."""
        with _timed(lambda seconds: setattr(self, '_begin', self._begin + seconds)):
            yield

    def lap(self, batch_size: int) -> dict[str, float | None]:
        """Ends the interval and starts the next.

        Args:
          batch_size: of the global batch.

        Returns:
          `images_per_second`, `data_wait`, the fraction of the time in which the devices had nothing
          to do but wait for data (at most: of a wait that began while a step ran, all is counted;
          both None for an interval of the compiled step alone), and `seconds` since the run started.
        """
        seconds, total = time.perf_counter() - self._begin, time.perf_counter() - self._born
        figures: dict[str, float | None] = {
            'images_per_second': None, 'data_wait': None, 'seconds': total,
        }  # fmt: skip
        if self._steps:
            self._seconds_per_step = seconds / self._steps
            figures['images_per_second'] = self._steps * batch_size / seconds
            figures['data_wait'] = self._waited / seconds
        self.restart()
        return figures

    def seconds_left(self, steps: int) -> float:
        """How long so many steps take at the last interval's rate; NaN before there is one."""
        return steps * self._seconds_per_step


@contextmanager
def _timed(report: Callable[[float], Any]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    report(time.perf_counter() - began)
