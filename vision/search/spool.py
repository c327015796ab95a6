"""Temporary file of vectors, for indexes that are fitted to a sample before they are filled."""

import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vision.core.errors import UserError


class Spool:
    """Batches of images whose vectors wait in a temporary file, so that memory stays flat.

    The file is in the system's folder for temporary files (TMPDIR), and has no name there: it is
    gone when the process ends, in whatever way.
    """

    def __init__(self, batches: Iterable[tuple[Any, np.ndarray]], size: int):
        """Writes all batches.

        Args:
          batches: tables of images, and their vectors, float32 [n, D].
          size: D.

        Raises:
          UserError: the file cannot be written, for example because the disk is full.
        """
        self._size, self._tables = size, list[Any]()
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the spool is gone
        except OSError as e:
            raise UserError(f'{e.strerror}; set TMPDIR to a folder on a larger disk') from None
        for table, vectors in batches:
            self._tables.append(table)
            self._write(np.ascontiguousarray(vectors, np.float32).tobytes())

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as e:
            raise UserError(
                f'{tempfile.gettempdir()}: {e.strerror}; vectors wait there until the index is '
                'trained: set TMPDIR to a folder on a larger disk, or `describe` first and `build` '
                'of the shards'
            ) from None

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    def sample(self, count: int) -> np.ndarray:
        """Returns vectors of `count` random images, or of all, float32 [n, D]."""
        if not len(self):
            return np.empty((0, self._size), np.float32)
        every = np.memmap(self._file, np.float32, 'r', shape=(len(self), self._size))
        return every[np.random.default_rng(0).permutation(len(self))[:count]]

    def __iter__(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields the batches in the order in which they were written."""
        self._file.seek(0)
        for table in self._tables:
            data = self._file.read(4 * self._size * len(table))
            yield table, np.frombuffer(data, np.float32).reshape(len(table), self._size)
