"""What a run writes down: `metrics.jsonl`, one record a line, and the same for TensorBoard."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from vision.core import processes, strict_json

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

        self._path = workdir / 'metrics.jsonl'
        _cut(self._path, step)
        self._file = open(self._path, 'a')  # noqa: SIM115 - closed by __exit__
        # The name that it gives a file counts seconds: a second file in one would replace the first.
        suffix = f'.{time.time_ns()}'
        self._events = SummaryWriter(str(workdir), purge_step=step + 1, filename_suffix=suffix)

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
        self._file.write(strict_json.dumps({'step': step, **values}) + '\n')
        self._file.flush()
        os.fsync(self._file.fileno())
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


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of a run, oldest first; a half-written last line is left out."""
    path = workdir / 'metrics.jsonl'
    return [json.loads(line) for line in _lines(path)] if path.exists() else []


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


def _lines(path: Path) -> list[str]:
    """The complete lines of a file."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]


def _cut(path: Path, step: int) -> None:
    from vision.core.workdir import write_text

    if path.exists():
        kept = [line for line in _lines(path) if json.loads(line)['step'] <= step]
        write_text(path, ''.join(kept))
