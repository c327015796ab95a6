"""Paths as callers have them: one or several; text, bytes or `os.PathLike`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vision.core.errors import UserError

AnyPath = str | bytes | os.PathLike


def as_list(paths: AnyPath | Iterable[AnyPath]) -> list[str]:
    """The paths as text. A single path is a list of one, not of its letters.

    Raises:
      UserError: something that is no path.
    """
    if isinstance(paths, AnyPath):
        return [os.fsdecode(paths)]
    return [os.fsdecode(_path(x)) for x in _iterable(paths)]


def as_path(path: AnyPath) -> Path:
    """One path, with ~ for the home folder; UserError for something else."""
    return Path(os.fsdecode(_path(path))).expanduser()


def _path(value: Any) -> Any:
    if not isinstance(value, AnyPath):
        raise UserError(f'{value!r:.80} is no path: give text, bytes or a pathlib.Path')
    return value


def _iterable(value: Any) -> Iterable[Any]:
    return value if isinstance(value, Iterable) else [_path(value)]


def common_root(paths: Iterable[str]) -> str:
    """The deepest folder that all files lie below; '' for no files."""
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    return os.path.commonpath(folders) if folders else ''


def below(path: str, root: str) -> str:
    """A file's path below a folder; as it is if it lies elsewhere."""
    whole, start = os.path.abspath(path), root.rstrip(os.sep) + os.sep
    return whole.removeprefix(start) if root and whole.startswith(start) else path
