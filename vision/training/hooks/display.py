"""What a person sees of a run: a live bar on a terminal, one line an interval elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vision.core import processes
from vision.preprocess.device import Batch
from vision.task.base import Metric
from vision.training.hooks import Hook
from vision.training.step import Metrics


class Display(Hook):
    """The progress of a run on stderr; with several processes, the first one's."""

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
        if not self._console.is_terminal:
            self.say(f'step {step}/{self._total}  {figures}  {_clock(seconds_left)} left')

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
