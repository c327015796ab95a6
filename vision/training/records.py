"""Records of a run: metric accumulator, throughput, `metrics.jsonl`, TensorBoard and results."""

import functools
import math
import shlex
import sys
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

# Metrics that a record takes from its last step. All others are averaged over the examples.
LATEST = ('lr', 'grad_norm', 'param_norm')


class Interval:
    """Accumulates training metrics between two log records.

    Metrics stay on the device until a record or a checkpoint is written. They are added in float64
    in the order of the steps, so the sums do not depend on where a run was interrupted.
    """

    def __init__(self, saved: dict[str, float] | None = None, first: str = ''):
        """Starts empty, or from the result of `to_json`.

        Args:
          saved: sums from a checkpoint.
          first: name of the task's first metric, whose sum older checkpoints call 'correct'.
        """
        self._sums = {first if k == 'correct' else k: float(v) for k, v in (saved or {}).items()}
        self._pending: list[tuple[int, int, Metrics]] = []

    def add(self, step: int, metrics: Metrics, count: int = 1) -> None:
        """Appends the metrics of steps without reading them from the device.

        Args:
          step: number of the first of the steps.
          metrics: scalars; or arrays [K] whose first `count` values are those of the steps.
          count: the number of steps.
        """
        self._pending.append((step, count, metrics))

    def read(self) -> int | None:
        """Adds the pending metrics to the sums.

        Returns:
          The first step whose loss or parameters are not finite, or None.
        """
        pending, self._pending = self._pending, []
        # One transfer for all pending steps.
        values = jax.device_get([metrics for _, _, metrics in pending])
        for (step, count, _), metrics in zip(pending, values, strict=True):
            rows = {key: np.ravel(value) for key, value in metrics.items()}
            finite = rows.pop('finite')
            for i in range(count):
                if not finite[i]:
                    return step + i
                for key, row in rows.items():
                    before = 0.0 if key in LATEST else self._sums.get(key, 0.0)
                    self._sums[key] = before + float(row[i])
        return None

    def record(self) -> dict[str, float]:
        """Returns the averages of the metrics that were read, and starts the next interval."""
        sums, self._sums = self._sums, {}
        # Sums over examples become means; `count` itself is not recorded.
        count = max(sums.pop('count', 0.0), 1.0)
        return {f'train/{k}': v if k in LATEST else v / count for k, v in sums.items()}

    def to_json(self) -> dict[str, float | str]:
        """Returns the sums, to be saved with a checkpoint."""
        assert not self._pending, 'read() comes first'
        # JSON has no NaN, so values that are not finite are saved as text.
        return {k: v if math.isfinite(v) else str(v) for k, v in self._sums.items()}


class Clock:
    """Measures the throughput of an interval, without compilation, evaluation and saving."""

    def __init__(self) -> None:
        self._born = time.perf_counter()
        self._seconds_per_step = math.nan
        self.restart()

    def restart(self) -> None:
        """Starts a new interval."""
        self._begin = time.perf_counter()
        self._steps, self._waited = 0, 0.0

    def step(self, count: int = 1) -> None:
        """Counts steps."""
        self._steps += count

    @property
    def elapsed(self) -> float:
        """Seconds since the interval began."""
        return time.perf_counter() - self._begin

    @contextmanager
    def waiting(self, running: Metrics | None) -> Iterator[None]:
        """Context manager that counts the time of its block as waiting for data.

        The time counts only if the device had finished the last step by the end of the block.
        Otherwise the device was busy and data were not the bottleneck.

        Args:
          running: metrics of the last step, which the device may still be computing; None before
            the first step.
        """
        with _timed(lambda seconds: self._count_wait(seconds, running)):
            yield

    def _count_wait(self, seconds: float, running: Metrics | None) -> None:
        # `is_ready` is False while the device still computes the last step.
        values = running.values() if running else ()
        if all(value.is_ready() for value in values):  # type: ignore[attr-defined]
            self._waited += seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Context manager that excludes the time of its block from the interval."""
        with _timed(lambda seconds: setattr(self, '_begin', self._begin + seconds)):
            yield

    def lap(self, batch_size: int) -> dict[str, float | None]:
        """Ends the interval and starts the next.

        Args:
          batch_size: global batch size.

        Returns:
          `images_per_second`; `data_wait`, the fraction of the time in which the devices waited for
          data; and `seconds` since the run started. `data_wait` is an upper bound: a wait that
          began while a step was running counts in full. `images_per_second` and `data_wait` are
          None for an interval that consists only of the first step, which includes the compilation.
        """
        seconds, total = time.perf_counter() - self._begin, time.perf_counter() - self._born
        figures: dict[str, float | None] = {
            'images_per_second': None, 'data_wait': None, 'seconds': total,
        }  # fmt: skip
        # An interval without steps has no throughput.
        if self._steps:
            self._seconds_per_step = seconds / self._steps
            figures['images_per_second'] = self._steps * batch_size / seconds
            figures['data_wait'] = self._waited / seconds
        self.restart()
        return figures

    def seconds_left(self, steps: int) -> float:
        """Estimates the duration of `steps` steps from the last interval; NaN before the first."""
        return steps * self._seconds_per_step


@contextmanager
def _timed(report: Callable[[float], Any]) -> Iterator[None]:
    """Calls `report` with the duration of the block."""
    began = time.perf_counter()
    yield
    report(time.perf_counter() - began)


# The metrics that differ between two otherwise identical runs: times, and values derived from them.
TIMES = ('seconds', 'images_per_second', 'data_wait')


class Recorder:
    """Writes a run's records to `metrics.jsonl` and TensorBoard, on the first process only."""

    def __init__(self, workdir: Path, step: int):
        """Opens the records and drops those that a killed run wrote after its last checkpoint.

        Args:
          workdir: workdir of the run.
          step: the step that the run resumes from; records of later steps are dropped.
        """
        self._workdir, self._step = workdir, step
        self._writes = processes.is_first()
        if not self._writes:
            return
        path = workdir / 'metrics.jsonl'
        if path.exists():
            kept = [record for record in read_records(workdir) if record['step'] <= step]
            write_text(path, ''.join(json_text(record) + '\n' for record in kept))
        self._file = open(path, 'a')  # noqa: SIM115 - closed by __exit__

    @functools.cached_property
    def _events(self) -> Any:
        """TensorBoard's writer, which is imported with the first record."""
        # tensorboardX imports Google's storage client if it is installed, for workdirs in the cloud,
        # which are not supported. This takes ten times as long as the rest of the import.
        with _without('google.cloud.storage'):
            from tensorboardX import SummaryWriter

        # SummaryWriter's file names contain the time in whole seconds. The suffix keeps a run that
        # is restarted within a second from overwriting the file.
        suffix = f'.{time.time_ns()}'
        # SummaryWriter calls fsync at each flush, which fails on file systems without fsync.
        return SummaryWriter(
            str(self._workdir),
            purge_step=self._step + 1,
            filename_suffix=suffix,
            write_to_disk=sync(self._file),
        )

    def __enter__(self) -> 'Recorder':
        return self

    def __exit__(self, *_) -> None:
        if self._writes:
            self._file.close()
            if '_events' in vars(self):
                self._events.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one record. Once this returns, killing the process does not lose the record.

        Args:
          step: number of steps done.
          values: values by name, such as 'train/loss'; None for a missing value.
        """
        if not self._writes:
            return
        # `sync` writes the record to the disk. TensorBoard gets only the numbers of the record.
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


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Makes the import of an optional module fail in the block, unless it was imported before."""
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


def newest(
    records: list[dict[str, Any]], split: str, step: int | None = None
) -> dict[str, Any] | None:
    """Returns the last recorded metrics of a split, or those of a given step; None if missing."""
    # A record holds a full evaluation of the split if it has the split's `count`.
    prefix = f'{split}/'
    for record in reversed(records):
        if f'{split}/count' in record and step in (None, record['step']):
            scores = {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}
            return {k: v for k, v in scores.items() if k != 'checkpoint'}
    return None


def grid(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Arranges uint8 images [N, H, W, C] in one RGB image, as a grid with lines between them."""
    images = visible(images)
    n, height, width, _ = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    # A grey sheet with one pixel between the images.
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image
    return sheet


def visible(images: np.ndarray) -> np.ndarray:
    """Averages the channels of images [..., C] to grey, unless C is 1 or 3."""
    if images.shape[-1] in (1, 3):
        return images
    return images.mean(-1, keepdims=True).round().astype(np.uint8)


Results = dict[str, dict[str, Any]]


def results(workdir: Path, best: int) -> Results:
    """Returns the metrics of checkpoint `best` by split, for the splits that were evaluated."""
    records = read_records(workdir)
    found = {'validation': newest(records, 'validation', best), 'test': newest(records, 'test')}
    return {split: metrics for split, metrics in found.items() if metrics is not None}


def evaluations(workdir: Path, last: int) -> list[tuple[int, dict[str, Any]]]:
    """Returns the (step, validation metrics) pairs that were recorded up to step `last`."""
    records = [r for r in read_records(workdir) if r['step'] <= last]
    scored = ((r['step'], newest([r], 'validation')) for r in records)
    return [(step, metrics) for step, metrics in scored if metrics is not None]


def results_table(results: Results, metrics: Mapping[str, Metric], workdir: str) -> Table | str:
    """Formats the results of `train` as a table for the terminal.

    Args:
      results: the value that `train` returned.
      metrics: metrics of the run's task, by name.
      workdir: workdir of the run, for the title.
    """
    if not results:
        return f'{workdir}: stopped early by training.stop_after'
    return metrics_table(results, metrics, title=f'{workdir}: the best checkpoint')


def next_commands(workdir: str, split: str = 'test', predicts: bool = True) -> str:
    """Returns the commands that evaluate and use a finished run, as a shell reads them.

    Args:
      workdir: workdir of the run.
      split: the split to evaluate.
      predicts: whether the task has class probabilities, which `experiments.predict` needs.
    """
    flag = f'--workdir={shlex.quote(workdir)}'
    other = '' if split == 'test' else f' --split={split}'
    lines = [f'next: python -m experiments.evaluate {flag}{other}']
    lines += [f'      python -m experiments.predict {flag} IMAGE …'] * predicts
    return '\n'.join(lines)
