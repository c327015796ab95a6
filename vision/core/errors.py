"""Exceptions for mistakes of the user, and helpers that word their messages."""

import difflib
import operator
import os
import re
import traceback
from collections.abc import Iterable
from typing import Any

# Common names in other codebases, and the name of the same thing here.
_ALSO = {
    'learning_rate': 'lr', 'epochs': 'duration', 'bs': 'batch_size', 'wd': 'weight_decay', 'output_dir': 'workdir',
    'logdir': 'workdir',
}  # fmt: skip
_FEW = 20  # up to this number, all known names are listed in addition to a suggestion


class UserError(Exception):
    """A mistake that the user can correct.

    Its text is one line that names the file or value and says what to do. Commands print the text
    on stderr, without a traceback, and exit with code 2.
    """


def not_installed(what: str, library: str, extra: str) -> UserError:
    """Returns the error for a missing library, with the command that installs it.

    Args:
      what: what needs the library: 'search'.
      library: name of the missing library.
      extra: the extra of this package, in pyproject.toml, that includes the library.
    """
    return UserError(f'{what} needs {library}, which is not installed: pip install -e ".[{extra}]"')


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the entry of `known` whose spelling is closest to `name`; None if none is close.

    A name is close if it is spelt alike or starts with `name`. Of equally similar names, the one
    with the closest number is returned: 'resnet50' for 'resnet51', rather than 'resnet56'.
    """
    spelt = {_plain(entry): entry for entry in known}
    name = _plain(name)
    # Prefer a known synonym to a similar spelling.
    if _ALSO.get(name) in spelt:
        return spelt[_ALSO[name]]
    # Long names must agree more: 'sdg' suggests 'sgd', but 'mobilenet' not 'googlenet' (0.67).
    cutoff = 0.6 if len(name) < 6 else 0.72
    matches = difflib.get_close_matches(name, list(spelt), n=20, cutoff=cutoff)
    if not matches and len(name) > 2:
        matches = [entry for entry in spelt if entry.startswith(name)]

    # The best has the same letters (swapped ones), then the most similar spelling and number.
    def likeness(match: str) -> tuple[bool, float, int]:
        ratio = difflib.SequenceMatcher(None, match, name).ratio()
        return sorted(match) == sorted(name), ratio, -abs(_number(match) - _number(name))

    return spelt[max(matches, key=likeness)] if matches else None


def similar(path: str) -> str:
    """Returns '; did you mean PATH?' for a path that does not exist; '' if no name is close.

    PATH is the entry of the same folder with the closest spelling.
    """
    path = os.path.expanduser(path).rstrip(os.sep)
    try:
        guess = nearest(os.path.basename(path), os.listdir(os.path.dirname(path) or os.curdir))
    except OSError:
        return ''
    return f'; did you mean {os.path.join(os.path.dirname(path), guess)}?' if guess else ''


def _plain(name: str) -> str:
    """A name in lower case with underscores, for comparison."""
    return name.casefold().replace('-', '_')


def _number(name: str) -> int:
    """The number that the digits of a name form, 0 without digits."""
    return int(''.join(re.findall('[0-9]', name))[:9] or 0)


def meant(name: str, known: Iterable[str]) -> list[str]:
    """Returns the dotted names in `known`, such as 'optimizer.lr', that a word may stand for.

    These are the names whose last part is the word. If there are none, a similarly spelt name is
    returned, or the names whose last part is spelt similarly.
    """
    ends: dict[str, list[str]] = {}
    for entry in known:
        ends.setdefault(entry.rpartition('.')[2], []).append(entry)
    if name in ends:
        return ends[name]
    guess = nearest(name, [entry for entries in ends.values() for entry in entries])
    return [guess] if guess else ends.get(nearest(name, ends) or '', [])


def unknown(kind: str, name: str, known: Iterable[str], elsewhere: Iterable[str] = ()) -> UserError:
    """Returns the error for an unknown name, with a suggestion, all known names, or both.

    If there is a suggestion, the known names are listed only if they are few.

    Args:
      kind: what the name stands for: 'model', 'config key', ….
      name: the unknown name.
      known: the valid names.
      elsewhere: dotted names to suggest from if no valid name is close.
    """
    known = sorted(known)
    guess = nearest(str(name), known)
    guesses = [guess] if guess else meant(str(name), elsewhere)
    hint = f' Did you mean {" or ".join(map(repr, guesses))}?' if guesses else ''
    if not guesses or len(known) <= _FEW:
        hint += f' Known: {", ".join(known) or "none"}.'
    return UserError(f'unknown {kind} {name!r}.{hint}')


def at_least_one(name: str, value: Any) -> int:
    """Returns a value as a whole number of 1 or more; raises UserError for anything else."""
    try:
        count = operator.index(value)
    except TypeError:
        raise UserError(f'{name}={value!r} must be a whole number') from None
    if count < 1:
        raise UserError(f'{name}={count} must be at least 1')
    return count


def in_a_line(error: BaseException) -> str:
    """Describes an exception of user-defined code in one line.

    For example 'ValueError: no such thing (net.py, line 12)'.
    """
    text = ' '.join(str(error).split())
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith('<frozen')
    ]
    # Add the innermost line of code.
    where = ''
    if frames and not isinstance(error, SyntaxError):  # a SyntaxError's text has the line already
        where = f' ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})'
    return f'{type(error).__name__}: {text[:300]}'.removesuffix(': ') + where


class Stopped(Exception):
    """Raised after a signal has stopped a run and its checkpoint is written.

    Attributes:
      signum: SIGTERM or SIGINT; the process exits with 128 + signum.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum
