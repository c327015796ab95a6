"""Hooks: what hangs on the training loop. A run's own are its display, early stopping and pictures.

The loop calls them at five stated points, in the order in which they are listed. They see what
happens and change nothing that the run's bits depend on.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vision.core import processes
from vision.core.checkpoints import Rank
from vision.core.progress import Cell, in_notebook
from vision.preprocess.device import Batch
from vision.task.base import Task
from vision.task.metrics import Metric
from vision.training.records import Recorder, visible
from vision.training.step import Metrics

_TRAIN, _VALIDATION = 64, 32  # images of a grid
_TILE = 96  # pixels of a captioned image at least
_RIGHT, _WRONG = (60, 160, 60), (210, 50, 50)


class Hook:
    """A hook that does nothing; a context manager, entered before the first step.

    With several processes every process has its hooks. A hook may read the device in `after_log`
    and `after_evaluation` only: elsewhere the device runs ahead of the host.
    """

    def __enter__(self) -> 'Hook':
        return self

    def __exit__(self, *_) -> None:
        """Ends it, whether the run ended well or not."""

    def start(self, step: int) -> None:
        """Called once, when `step` steps are done and the next one is about to be taken."""

    def before_step(self, step: int) -> None:
        """Called before step `step` (from 1) and its batch."""

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Called when the step, its batch and what will be its metrics are on the device."""

    def after_log(self, step: int, record: dict[str, Any], seconds_left: float) -> None:
        """Called with the record of the interval that ends with `step`, when it is written."""

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> str | None:
        """Called with the validation metrics; may return why the run shall end with this step."""
        return None


class Display(Hook):
    """The progress of a run on stderr, in a notebook below the cell; with several processes, the first one's."""

    def __init__(self, data: str, total_steps: int, metrics: Mapping[str, Metric]):
        """Prepares the bar.

        Args:
          data: the training split's name.
          total_steps: of the run.
          metrics: of the task, by name.
        """
        self._metrics = {'loss': metrics['loss'], **metrics} if 'loss' in metrics else metrics
        self._console = Console(stderr=True, quiet=not processes.is_first())
        self._data, self._total = data, total_steps
        self._progress = Progress(
            TextColumn('{task.description}'),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn('{task.fields[figures]}'),
            TimeRemainingColumn(),
            TextColumn('left'),
            console=self._console,
            disable=not self._console.is_terminal or self._console.quiet,
        )
        self._cell = Cell() if in_notebook() else None
        self._task = self._progress.add_task('compiling', total=total_steps, figures='')
        self._compiling = True

    def __enter__(self) -> 'Display':
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def start(self, step: int) -> None:
        """Says what begins."""
        self._progress.update(self._task, completed=step)
        what = f'going on from step {step}' if step else 'training'
        self.say(f'{what} on {self._data}: {self._total} steps; the first one is compiled')

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._cell:
            self._cell.say(text)
            return
        self._console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Moves the bar; no time is estimated from the first step, which was compiled."""
        if self._compiling:
            self._compiling = False
            self._progress.reset(
                self._task, total=self._total, completed=step, description='step', figures=''
            )
        self._progress.update(self._task, completed=step)

    def after_log(self, step: int, record: dict[str, Any], seconds_left: float) -> None:
        """Shows an interval's figures: beside the bar, or as a line of their own."""
        figures = self._figures({k.removeprefix('train/'): v for k, v in record.items()})
        if record['images_per_second'] is not None:
            figures += f'  {record["images_per_second"]:,.0f} images/s'
        self._progress.update(self._task, completed=step, figures=figures)
        line = f'step {step}/{self._total}  {figures}  {_clock(seconds_left)} left'
        if self._cell:
            self._cell.show(line)
        elif not self._console.is_terminal:
            self.say(line)

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Prints an evaluation's figures."""
        figures = self._figures(scores)
        self.say(f'step {step}/{self._total}  validation: {figures} of {scores["count"]:,}')

    def _figures(self, values: Mapping[str, Any]) -> str:
        """The task's metrics among the values, the loss first: 'loss 0.1234  top-1 95.00%'."""
        shown = {k: m for k, m in self._metrics.items() if m.in_tables}
        return '  '.join(
            f'{m.title} {m.show(values[k])}' for k, m in shown.items() if values.get(k) is not None
        )


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return '–'
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class EarlyStopping(Hook):
    """Ends a run `training.patience` after its best evaluation.

    What it knows follows from the run's records alone, so a run that was killed ends where one that
    was left alone does.
    """

    def __init__(self, patience: Fraction | None, rank: Rank):
        """Starts without an evaluation.

        Args:
          patience: in steps; None never ends a run.
          rank: of validation metrics; greater is better.
        """
        self._patience, self._rank = patience, rank
        self._best: tuple[float, ...] | None = None
        self._best_step = self._last_step = 0

    def replay(self, evaluations: list[tuple[int, dict[str, Any]]]) -> None:
        """Takes the evaluations (step, validation metrics) that were recorded before."""
        for step, scores in evaluations:
            self.after_evaluation(step, scores)

    @property
    def reached(self) -> bool:
        """True if the last evaluation ended the run."""
        return self._patience is not None and self._last_step - self._best_step >= self._patience

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> str | None:
        """Looks whether it was better, as the best checkpoint is chosen."""
        rank = self._rank(scores)
        if self._best is None or rank > self._best:
            self._best, self._best_step = rank, step
        self._last_step = step
        if not self.reached:
            return None
        return (
            f'stopped early at step {step}: no better than step {self._best_step} on the '
            'validation split for as long as training.patience says'
        )


class Pictures(Hook):
    """Shows the first training batch, and the first validation images with their labels."""

    def __init__(
        self, recorder: Recorder, validated: Callable[[], tuple[Batch, Batch]], task: Task
    ):
        """Prepares the pictures.

        Args:
          recorder: writes them.
          validated: returns the first batch of the last validation, and the answers to it.
          task: captions them.
        """
        self._recorder, self._validated, self._task = recorder, validated, task

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Shows what was fed in the first step, of what this process holds."""
        if step == 1:
            images = _local(batch['image'])
            images = images.reshape(-1, *images.shape[-3:])  # views of one image are neighbours
            self._recorder.images('train/images', images[:_TRAIN], 0)

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Shows the first validation images of process 0 with the task's captions."""
        if not processes.is_first():
            return
        batch, answers = self._validated()
        images, ids = (_local(batch[k]) for k in ('image', 'id'))
        columns = jax.device_get(dict(answers))
        rows = {int(example): row for row, example in enumerate(columns['id'])}
        tiles = []
        for i in np.flatnonzero(ids >= 0)[:_VALIDATION]:
            caption, right = self._task.caption(columns, rows[int(ids[i])])
            tiles.append(captioned(images[i], caption, _RIGHT if right else _WRONG))
        self._recorder.images('validation/images', np.stack(tiles), step)


def captioned(image: np.ndarray, caption: str, color: tuple[int, int, int]) -> np.ndarray:
    """Writes a line below an image.

    Args:
      image: uint8 or float32 [H, W, C] in 0 … 255; small ones are enlarged.
      caption: cut to the width of the picture.
      color: RGB, of the line's background.

    Returns:
      uint8 [H', W', 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    pixels = np.clip(np.round(np.asarray(image, np.float32)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(visible(pixels), (*pixels.shape[:2], 3)))
    times = max(1, -(-_TILE // min(picture.size)))
    picture = picture.resize(
        (picture.width * times, picture.height * times), Image.Resampling.NEAREST
    )
    font = ImageFont.load_default(11)
    if not caption.isascii():  # Pillow's own font has few other letters
        from vision.core import fonts

        font, caption = ImageFont.truetype(fonts.file_of(), 11), fonts.legible(caption)
    while caption and font.getlength(caption) > picture.width - 4:
        caption = caption[:-1]
    sheet = Image.new('RGB', (picture.width, picture.height + 15), color)
    sheet.paste(picture)
    ImageDraw.Draw(sheet).text((2, picture.height + 1), caption, (255, 255, 255), font)
    return np.asarray(sheet)


def _local(x: jax.Array) -> np.ndarray:
    """The first part of an array that this process holds."""
    return np.asarray(x.addressable_shards[0].data)
