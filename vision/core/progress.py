"""A bar on stderr for what takes long; nothing at all where stderr is no terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar('T')


def track(items: Iterable[T], total: int, what: str, show: bool = True) -> Iterator[T]:
    """Passes items on, and shows how many of them are through.

    Args:
      items: of whatever kind.
      total: how many there will be.
      what: is done to them, in a word: 'classifying'.
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
    if not (show and console.is_terminal):
        yield from items
        return
    columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    # Rich would send what is printed on stdout, a pipe perhaps, to this console.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task('', total=total)
        for item in items:
            yield item
            progress.advance(task)
