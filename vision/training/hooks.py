"""Hooks of the training loop. The built-in ones are display, early stopping and pictures.

The loop calls each hook at five points, in the order in which the hooks are listed. Hooks observe
the run and must not change its state.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from vision.core import processes
from vision.core.checkpoints import Rank
from vision.core.progress import Cell, in_notebook, on_terminal, progress_bar
from vision.preprocess.device import Batch
from vision.task.base import Task
from vision.task.metrics import Metric
from vision.training.records import Recorder, visible
from vision.training.step import Metrics

_TRAIN, _VALIDATION = 64, 32  # maximum number of images in a grid
_TILE = 96  # minimum side of a captioned image, in pixels
_RIGHT, _WRONG = (60, 160, 60), (210, 50, 50)


class Hook:
    """Base class of hooks: a context manager whose methods do nothing.

    The loop enters the context manager before the first step. Every process has its own hooks. Only
    `after_log` and `after_evaluation` may read from the device: in other methods a read would make
    the host wait for the step that is running.

    Attributes:
      every_step: whether `before_step` and `after_step`, if the hook defines them, are called for
        every step. The device then takes one step per call. If False, they are called for the first
        and the last step of each call (`training.steps_per_call`); the batch of a call of more than
        one step is empty.
    """

    every_step = True

    def __enter__(self) -> 'Hook':
        return self

    def __exit__(self, *_) -> None:
        """Called when the run ends, also after an error."""

    def start(self, step: int) -> None:
        """Called once, when `step` steps are done and the next one is about to start."""

    def before_step(self, step: int) -> None:
        """Called before step `step` (from 1) and before its batch is loaded."""

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Called when the step has been dispatched to the device.

        Args:
          step: number of the step, from 1.
          batch: the step's batch.
          metrics: the step's metrics, which the device may still be computing.
        """

    def after_log(self, step: int, record: dict[str, Any], seconds_left: float) -> None:
        """Called after the record of the interval that ends with `step` has been written."""

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> str | None:
        """Called with the validation metrics; may return a reason to end the run here."""
        return None


def needs_every_step(hook: Hook) -> bool:
    """True if a hook has to be called for every step."""
    methods = ('before_step', 'after_step')
    return hook.every_step and any(
        getattr(type(hook), name) is not getattr(Hook, name) for name in methods
    )


class Display(Hook):
    """Shows the progress of a run on stderr or below a notebook's cell, on the first process."""

    every_step = False

    def __init__(self, data: str, total_steps: int, metrics: Mapping[str, Metric]):
        """Creates the progress bar.

        Args:
          data: name of the training split.
          total_steps: length of the run in steps.
          metrics: metrics of the task, by name.
        """
        self._metrics = {'loss': metrics['loss'], **metrics} if 'loss' in metrics else metrics
        self._data, self._total = data, total_steps
        self._bar = ExitStack()
        self._cell = Cell() if in_notebook() else None

    def __enter__(self) -> 'Display':
        self._start_bar = self._bar.enter_context(progress_bar(processes.is_first()))
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def start(self, step: int) -> None:
        """Prints that the run starts or resumes."""
        self._move = self._start_bar('compiling', self._total, step)
        what = f'resuming from step {step}' if step else 'training'
        self.say(f'{what} on {self._data}: {self._total} steps; compiling the first one')

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._cell:
            self._cell.say(text)
        elif processes.is_first():
            print(text, file=sys.stderr, flush=True)

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Advances the bar."""
        self._move(step, description='step')

    def after_log(self, step: int, record: dict[str, Any], seconds_left: float) -> None:
        """Shows an interval's metrics next to the bar, or on a line if stderr is no terminal."""
        figures = self._figures({k.removeprefix('train/'): v for k, v in record.items()})
        if record['images_per_second'] is not None:
            figures += f'  {record["images_per_second"]:,.0f} images/s'
        self._move(step, figures=figures)
        line = f'step {step}/{self._total}  {figures}  {_clock(seconds_left)} left'
        if self._cell:
            self._cell.show(line)
        elif not on_terminal():
            self.say(line)

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Prints the validation metrics."""
        figures = self._figures(scores)
        self.say(f'step {step}/{self._total}  validation: {figures} of {scores["count"]:,}')

    def _figures(self, values: Mapping[str, Any]) -> str:
        """Formats the task's metrics, the loss first: 'loss 0.1234  top-1 95.00%'."""
        shown = {k: m for k, m in self._metrics.items() if m.in_tables}
        return '  '.join(
            f'{m.title} {m.show(values[k])}' for k, m in shown.items() if values.get(k) is not None
        )


def _clock(seconds: float) -> str:
    """Formats a duration as 'h:mm:ss' or 'm:ss'; '–' for NaN."""
    if seconds != seconds:
        return '–'
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class EarlyStopping(Hook):
    """Ends a run when `training.patience` has passed since its best evaluation.

    Its state is rebuilt from the run's records, so a resumed run ends at the same step as an
    uninterrupted one.
    """

    def __init__(self, patience: Fraction | None, rank: Rank):
        """Starts without evaluations.

        Args:
          patience: in steps; None disables early stopping.
          rank: maps validation metrics to a tuple that is greater for a better evaluation.
        """
        self._patience, self._rank = patience, rank
        self._best: tuple[float, ...] | None = None
        self._best_step = self._last_step = 0

    def replay(self, evaluations: list[tuple[int, dict[str, Any]]]) -> None:
        """Processes the recorded evaluations (step, validation metrics) of a resumed run."""
        for step, scores in evaluations:
            self.after_evaluation(step, scores)

    @property
    def reached(self) -> bool:
        """True if `patience` steps have passed since the best evaluation."""
        return self._patience is not None and self._last_step - self._best_step >= self._patience

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> str | None:
        """Compares the evaluation with the best one so far."""
        # The same rank selects the best checkpoint.
        rank = self._rank(scores)
        if self._best is None or rank > self._best:
            self._best, self._best_step = rank, step
        self._last_step = step
        if not self.reached:
            return None
        return (
            f'stopped early at step {step}: no better validation result since step '
            f'{self._best_step}, and training.patience has passed'
        )


class Pictures(Hook):
    """Shows the first training batch and captioned validation images in TensorBoard."""

    every_step = False  # the first step always has a call of its own

    def __init__(
        self, recorder: Recorder, validated: Callable[[], tuple[Batch, Batch]], task: Task
    ):
        """Stores the recorder, the source of the images and the task.

        Args:
          recorder: writes the pictures.
          validated: returns the first batch of the last validation, and the task's answers to it.
          task: provides the captions.
        """
        self._recorder, self._validated, self._task = recorder, validated, task

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Shows this process's images of the first step."""
        # A resumed run has these images in its events already.
        if step == 1:
            images = _local(batch['image'])
            images = images.reshape(-1, *images.shape[-3:])  # views of an image side by side
            self._recorder.images('train/images', images[:_TRAIN], 0)

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Shows the first validation images of the first process, framed green or red."""
        if not processes.is_first():
            return
        batch, answers = self._validated()
        images, ids = (_local(batch[k]) for k in ('image', 'id'))
        # Every process has all answers but only its own images, so match the two by id.
        columns = jax.device_get(dict(answers))
        rows = {int(example): row for row, example in enumerate(columns['id'])}
        tiles = []
        for i in np.flatnonzero(ids >= 0)[:_VALIDATION]:
            caption, right = self._task.caption(columns, rows[int(ids[i])])
            tiles.append(captioned(images[i], caption, _RIGHT if right else _WRONG))
        self._recorder.images('validation/images', np.stack(tiles), step)


def captioned(image: np.ndarray, caption: str, color: tuple[int, int, int]) -> np.ndarray:
    """Draws a caption below an image.

    Args:
      image: uint8 or float32 [H, W, C] in 0 … 255; small images are enlarged.
      caption: the text, which is cut at its end to fit the width of the picture.
      color: background of the caption, RGB.

    Returns:
      uint8 [H', W', 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    # Convert to RGB and enlarge by an integer factor.
    pixels = np.clip(np.round(np.asarray(image, np.float32)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(visible(pixels), (*pixels.shape[:2], 3)))
    times = max(1, -(-_TILE // min(picture.size)))
    picture = picture.resize(
        (picture.width * times, picture.height * times), Image.Resampling.NEAREST
    )
    # Fit the caption to the width. Pillow's own font has few letters beyond ASCII.
    font = ImageFont.load_default(11)
    if not caption.isascii():
        from vision.core import fonts

        font, caption = ImageFont.truetype(fonts.file_of(), 11), fonts.legible(caption)
    while caption and font.getlength(caption) > picture.width - 4:
        caption = caption[:-1]
    # Draw the caption on a coloured strip below the picture.
    sheet = Image.new('RGB', (picture.width, picture.height + 15), color)
    sheet.paste(picture)
    ImageDraw.Draw(sheet).text((2, picture.height + 1), caption, (255, 255, 255), font)
    return np.asarray(sheet)


def _local(x: jax.Array) -> np.ndarray:
    """Returns the first shard of an array that this process holds."""
    return np.asarray(x.addressable_shards[0].data)
