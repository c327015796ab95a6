"""The user's mistakes: one exception, one line, exit code 2."""

import difflib
import operator
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: the file or value, and what to do.

    The command line prints the text on stderr and exits with 2; no traceback is shown.
    """


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the entry of `known` that is spelt most like `name`, or None if none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for an unknown `kind` called `name`: the nearest name, and all known ones."""
    known = sorted(known)
    guess = nearest(str(name), known)
    hint = f' Did you mean {guess!r}?' if guess else ''
    return UserError(f'unknown {kind} {name!r}.{hint} Known: {", ".join(known) or "none"}.')


def at_least_one(name: str, value: Any) -> int:
    """Returns a whole number from 1 on; UserError for anything else."""
    try:
        count = operator.index(value)
    except TypeError:
        raise UserError(f'{name}={value!r} must be a whole number') from None
    if count < 1:
        raise UserError(f'{name}={count} must be at least 1')
    return count


class Stopped(Exception):
    """A signal asked a run to stop, and its checkpoint was written.

    Attributes:
      signum: SIGTERM or SIGINT; the process exits with 128 + signum.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
