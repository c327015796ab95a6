"""Bars on stderr for what takes long; nothing at all where stderr is no terminal. In a notebook text below the cell."""

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
    """The output of a notebook's cell: lines that stay, and below them one that is replaced."""

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
    """Gives what starts a bar: called with a name and a total (None: not known), it returns what moves the bar.

    Args:
      show: False where the answers themselves go to the same terminal meanwhile.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn('{task.description}', markup=False),  # a name may have brackets
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # Rich would send it, a pipe perhaps, to this console
        disable=not (show and console.is_terminal),
    )

    def start(name: str, total: int | None) -> Callable[[int], None]:
        task = bar.add_task(name, total=total)
        return lambda done: bar.update(task, completed=done)

    with bar:
        yield start


def track(items: Iterable[T], total: int, what: str, show: bool = True) -> Iterator[T]:
    """Passes items on, and shows how many of them are through.

    Args:
      items: of whatever kind.
      total: how many there will be.
      what: is done to them, in a word: 'classifying'.
      show: as `progress_bar` has it.
    """
    with progress_bar(show) as start:
        move = start(what, total)
        for done, item in enumerate(items, 1):
            yield item
            move(done)
