"""What a person sees of a run: a live bar on a terminal, one line an interval elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vision.evaluation.tables import metrics_table


class Display:
    """The progress of a run on stderr, as a context manager."""

    def __init__(self, total_steps: int, step: int):
        """Starts the bar.

        Args:
          total_steps: of the run.
          step: that it starts from.
        """
        self._console = Console(stderr=True)
        self._total = total_steps
        self._progress = Progress(
            TextColumn('step'),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn('{task.fields[figures]}'),
            TimeRemainingColumn(),
            TextColumn('left'),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task('', total=total_steps, completed=step, figures='')

    def __enter__(self) -> 'Display':
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def start(self, data: str, step: int) -> None:
        """Says what begins."""
        what = f'going on from step {step}' if step else 'training'
        self.say(f'{what} on {data}: {self._total} steps; the first one is compiled')

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def interval(self, step: int, record: dict[str, Any], seconds_left: float) -> None:
        """Shows an interval's figures: beside the bar, or as a line of their own."""
        figures = f'loss {record["train/loss"]:.4f}  accuracy {record["train/top1"]:.2%}'
        if record['images_per_second'] is not None:
            figures += f'  {record["images_per_second"]:,.0f} images/s'
        self._progress.update(self._task, completed=step, figures=figures)
        if not self._console.is_terminal:
            self.say(f'step {step}/{self._total}  {figures}  {_clock(seconds_left)} left')

    def evaluated(self, step: int, split: str, metrics: dict[str, Any]) -> None:
        """Prints an evaluation's figures."""
        self.say(
            f'step {step}/{self._total}  {split}: loss {metrics["loss"]:.4f}  '
            f'accuracy {metrics["top1"]:.2%} of {metrics["count"]:,}'
        )


def results_table(results: dict[str, dict[str, Any]], workdir: str) -> Table | str:
    """What `train` returned, as a person reads it."""
    if not results:
        return f'{workdir}: stopped early, as training.stop_after says'
    return metrics_table(results, title=f'{workdir}: the best checkpoint')


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return '–'
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
