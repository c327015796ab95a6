"""Progress bars on stderr for what takes seconds; nothing where stderr is no terminal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar('T')

_display: Any = None  # the one on the terminal; bars that are started meanwhile are added to it


class Start(Protocol):
    """Starts a bar and returns the function that moves it."""

    def __call__(self, name: str, total: int | None, done: int = 0) -> Callable[..., None]:
        """Starts a bar.

        Args:
          name: what is done: 'classifying'.
          total: the number of items; None if unknown.
          done: the number of items that were done before.

        Returns:
          `move(done, **shown)`: shows the number of items done; `shown` may have another
          `description`, and `figures`, text behind the bar.
        """


@contextmanager
def progress_bar(show: bool = True) -> Iterator[Start]:
    """Yields the function that starts bars; they are removed at the end of the block.

    A bar shows the time that has passed and, where the total is known, the time left. Bars that are
    started while others are shown are added to them.

    Args:
      show: False where answers are printed on the same terminal meanwhile.
    """
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


def on_terminal() -> bool:
    """True if bars are shown: stderr is a terminal."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Shows on a terminal what the program does in the block, as 'compiling', and for how long."""
    with progress_bar() as start:
        start(what, None)
        yield


def track(items: Iterable[T], total: int | None, what: str, show: bool = True) -> Iterator[T]:
    """Yields the items and shows how many of them are done.

    Args:
      items: of any kind.
      total: the number of items; None if unknown.
      what: is done to them, in a word: 'classifying'.
      show: as of `progress_bar`.
    """
    with progress_bar(show) as start:
        move = start(what, total)
        for done, item in enumerate(items, 1):
            yield item
            move(done)


def _make_display(show: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Figures(ProgressColumn):
        """The items done, the time that has passed, the time left, and a bar's own figures."""

        def render(self, task: Task) -> Text:
            done = f'{task.completed:,.0f}' if task.completed or task.total is not None else ''
            total = '' if task.total is None else f'/{task.total:,.0f}'
            time = _clock(task.elapsed)
            if task.time_remaining is not None and not task.finished:
                time += f', {_clock(task.time_remaining)} left'
            shown = (done + total, time, task.fields['figures'])
            return Text('  '.join(filter(None, shown)))

    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn('{task.description}', markup=False),  # a name may have brackets
        BarColumn(bar_width=20),  # the figures of a run need room
        Figures(),
        console=console,
        transient=True,
        redirect_stdout=False,  # Rich would send it, a pipe perhaps, to this console
        disable=not (show and console.is_terminal),
    )


def _clock(seconds: float | None) -> str:
    minutes, seconds = divmod(int(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
