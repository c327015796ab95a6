"""Progress bars on stderr, if it is a terminal, and text output below the cell of a notebook."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar('T')

# The active display. Bars that start while it is shown are added to it.
_display: Any = None


class Start(Protocol):
    """Starts a bar and returns the function that moves it."""

    def __call__(self, name: str, total: int | None, done: int = 0) -> Callable[..., None]:
        """Starts a bar.

        Args:
          name: description of the bar: 'classifying'.
          total: number of items; None if unknown.
          done: number of items that are already finished.

        Returns:
          A function `move(done, **shown)` that sets the number of finished items. `shown` may have
          a new `description`, and `figures`, a text after the bar.
        """


@contextmanager
def progress_bar(show: bool = True) -> Iterator[Start]:
    """Yields a function that starts bars, which are removed at the end of the block.

    A bar shows the elapsed time and, if the total is known, the time left. Bars that start while
    others are shown are added below them.

    Args:
      show: False shows no bars, for example while results are printed on the same terminal.
    """
    # Rich allows only one display at a time: add the bars to the one that is shown, if any.
    global _display
    outer, tasks = _display, list[Any]()
    display = outer if outer is not None and show else _make_display(show)

    def start(name: str, total: int | None, done: int = 0) -> Callable[..., None]:
        task = display.add_task(name, total=total, completed=done, figures='')
        tasks.append(task)
        return lambda done, **shown: display.update(task, completed=done, **shown)

    if display is outer:
        try:
            yield start
        finally:
            for task in tasks:
                display.remove_task(task)
        return
    with display:
        _display = display
        try:
            yield start
        finally:
            _display = outer


class Cell:
    """Output of a notebook cell: permanent lines, and a last line that is replaced."""

    def __init__(self) -> None:
        """Starts the output, empty."""
        from IPython.display import display

        self._lines: list[str] = []
        self._handle = display({'text/plain': ''}, raw=True, display_id=True)

    def say(self, text: str) -> None:
        """Adds a permanent line."""
        self._lines.append(text)
        self.show('')

    def show(self, last: str) -> None:
        """Replaces the last line."""
        text = '\n'.join([*self._lines, *filter(None, [last])])
        self._handle.update({'text/plain': text}, raw=True)


def in_notebook() -> bool:
    """True in a Jupyter kernel."""
    ipython = sys.modules.get('IPython')
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, 'kernel')


def on_terminal() -> bool:
    """True if stderr is a terminal, where bars are shown."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Shows the name of a phase, such as 'compiling', and its elapsed time during the block."""
    with progress_bar() as start:
        start(what, None)
        yield


def track(items: Iterable[T], total: int | None, what: str, show: bool = True) -> Iterator[T]:
    """Yields the items while a progress bar counts them.

    Args:
      items: any iterable.
      total: number of items; None if unknown.
      what: description of the bar: 'classifying'.
      show: as in `progress_bar`.
    """
    with progress_bar(show) as start:
        move = start(what, total)
        for done, item in enumerate(items, 1):
            yield item
            move(done)


def _make_display(show: bool) -> Any:
    """Makes Rich's display for bars; it is disabled if nothing is to be shown."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Figures(ProgressColumn):
        """Column with the number of finished items, elapsed time, time left and figures."""

        def render(self, task: Task) -> Text:
            done = f'{task.completed:,.0f}' if task.completed or task.total is not None else ''
            total = '' if task.total is None else f'/{task.total:,.0f}'
            time = _clock(task.elapsed)
            if task.time_remaining is not None and not task.finished:
                time += f', {_clock(task.time_remaining)} left'
            shown = (done + total, time, task.fields['figures'])
            return Text('  '.join(filter(None, shown)))

    # Bars are removed at their end (`transient`), and hidden if stderr is not a terminal.
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn('{task.description}', markup=False),  # a name may contain brackets
        BarColumn(bar_width=20),  # the figures of a run need room
        Figures(),
        console=console,
        transient=True,
        redirect_stdout=False,  # Rich would send stdout to this console even if it is a pipe
        disable=not (show and console.is_terminal),
    )


def _clock(seconds: float | None) -> str:
    """A time as '1:02:03' or '2:03'."""
    minutes, seconds = divmod(int(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
