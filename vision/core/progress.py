"""Progress bars on stderr; nothing is shown if stderr is not a terminal. In a notebook: text below the cell."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar('T')


def in_notebook() -> bool:
    """True in a Jupyter kernel."""
    ipython = sys.modules.get('IPython')
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, 'kernel')


class Cell:
    """Output of a notebook's cell: lines that stay, and a last line that is replaced."""

    def __init__(self) -> None:
        """Starts the output, empty."""
        from IPython.display import display

        self._lines: list[str] = []
        self._handle = display({'text/plain': ''}, raw=True, display_id=True)

    def say(self, text: str) -> None:
        """Adds a line that stays."""
        self._lines.append(text)
        self.show('')

    def show(self, last: str) -> None:
        """Replaces the last line."""
        text = '\n'.join([*self._lines, *filter(None, [last])])
        self._handle.update({'text/plain': text}, raw=True)


@contextmanager
def progress_bar(show: bool = True) -> Iterator[Callable[[str, int | None], Callable[[int], None]]]:
    """Context manager for progress bars.

    Yields a function `start(name, total)` that adds a bar; a total of None is unknown. It returns a
    function that sets the number of finished items.

    Args:
      show: False shows no bar, for example while results are printed on the same terminal.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    # Rich shows the bar only on a terminal, and removes it at the end.
    console = Console(stderr=True)
    bar = Progress(
        TextColumn('{task.description}', markup=False),  # a name may contain brackets
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # Rich would send stdout to this console even if it is a pipe
        disable=not (show and console.is_terminal),
    )

    def start(name: str, total: int | None) -> Callable[[int], None]:
        task = bar.add_task(name, total=total)
        return lambda done: bar.update(task, completed=done)

    with bar:
        yield start


def track(items: Iterable[T], total: int, what: str, show: bool = True) -> Iterator[T]:
    """Yields the items while a progress bar counts them.

    Args:
      items: any iterable.
      total: number of items.
      what: description of the bar: 'classifying'.
      show: as in `progress_bar`.
    """
    with progress_bar(show) as start:
        move = start(what, total)
        for done, item in enumerate(items, 1):
            yield item
            move(done)
