"""Records of a run: what is accumulated between two of them, `metrics.jsonl` and TensorBoard, and what came out."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from vision.core import processes
from vision.core.text import json_text
from vision.core.workdir import read_records, sync, write_text
from vision.task.metrics import Metric, metrics_table
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
        self._sums = {first if k == 'correct' else k: float(v) for k, v in (saved or {}).items()}
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

    def to_json(self) -> dict[str, float | str]:
        """The part of the interval that a checkpoint keeps."""
        assert not self._pending, 'read() comes first'
        return {
            k: v if math.isfinite(v) else str(v) for k, v in self._sums.items()
        }  # JSON has no NaN


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
        """The seconds that so many steps take at the last interval's rate; NaN before there is one."""
        return steps * self._seconds_per_step


@contextmanager
def _timed(report: Callable[[float], Any]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    report(time.perf_counter() - began)


# What differs between two runs of the same bits: times and what follows from them.
TIMES = ('seconds', 'images_per_second', 'data_wait')


class Recorder:
    """Appends to a run's records, as a context manager; process 0 alone does."""

    def __init__(self, workdir: Path, step: int):
        """Opens the records and cuts off what a killed run wrote behind its last checkpoint.

        Args:
          workdir: of the run.
          step: that the run goes on from; records of later steps are dropped.
        """
        self._writes = processes.is_first()
        if not self._writes:
            return
        from tensorboardX import SummaryWriter

        path = workdir / 'metrics.jsonl'
        if path.exists():
            kept = [record for record in read_records(workdir) if record['step'] <= step]
            write_text(path, ''.join(json_text(record) + '\n' for record in kept))
        self._file = open(path, 'a')  # noqa: SIM115 - closed by __exit__
        # The name that it gives a file counts seconds: a second file in one would replace the first.
        suffix = f'.{time.time_ns()}'
        # The writer calls fsync at each flush, and would end the run where there is none.
        self._events = SummaryWriter(
            str(workdir),
            purge_step=step + 1,
            filename_suffix=suffix,
            write_to_disk=sync(self._file),
        )

    def __enter__(self) -> 'Recorder':
        return self

    def __exit__(self, *_) -> None:
        if self._writes:
            self._file.close()
            self._events.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one record; when this returns, a kill of the process does not lose it.

        Args:
          step: the steps done.
          values: by name ('train/loss'); None where there is no value.
        """
        if not self._writes:
            return
        self._file.write(json_text({'step': step, **values}) + '\n')
        sync(self._file)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """Shows a grid of images, float32 or uint8 [N, H, W, C] in 0 … 255, in TensorBoard."""
        if not self._writes:
            return
        pixels = np.clip(np.round(images), 0, 255).astype(np.uint8)
        self._events.add_image(name, grid(pixels), step, dataformats='HWC')
        self._events.flush()


def newest(
    records: list[dict[str, Any]], split: str, step: int | None = None
) -> dict[str, Any] | None:
    """The last recorded metrics of a split (at a step, if one is given), or None."""
    prefix = f'{split}/'
    for record in reversed(records):
        if f'{split}/count' in record and step in (None, record['step']):
            scores = {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}
            return {k: v for k, v in scores.items() if k != 'checkpoint'}
    return None


def grid(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Lays uint8 images [N, H, W, C] out in rows: one image, with lines between, RGB."""
    images = visible(images)
    n, height, width, _ = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image
    return sheet


def visible(images: np.ndarray) -> np.ndarray:
    """Images [..., C] of other than 1 or 3 channels as the mean of their channels, in grey."""
    if images.shape[-1] in (1, 3):
        return images
    return images.mean(-1, keepdims=True).round().astype(np.uint8)


Results = dict[str, dict[str, Any]]


def results(workdir: Path, best: int) -> Results:
    """Returns the metrics of the checkpoint of step `best` by split, where there are any."""
    records = read_records(workdir)
    found = {'validation': newest(records, 'validation', best), 'test': newest(records, 'test')}
    return {split: metrics for split, metrics in found.items() if metrics is not None}


def evaluations(workdir: Path, last: int) -> list[tuple[int, dict[str, Any]]]:
    """Returns the validation metrics that were recorded up to step `last`, with their steps."""
    records = [r for r in read_records(workdir) if r['step'] <= last]
    scored = ((r['step'], newest([r], 'validation')) for r in records)
    return [(step, metrics) for step, metrics in scored if metrics is not None]


def results_table(results: Results, metrics: Mapping[str, Metric], workdir: str) -> Table | str:
    """The figures that `train` returned, as a table for the terminal.

    Args:
      results: of `train`.
      metrics: of the run's task.
      workdir: of the run, for the title.
    """
    if not results:
        return f'{workdir}: stopped early, as training.stop_after says'
    return metrics_table(results, metrics, title=f'{workdir}: the best checkpoint')
