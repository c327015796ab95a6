"""Search for unreadable images before a run starts, and the limit on their number."""

import functools
import io
import itertools
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from vision.core import processes
from vision.core.errors import UserError
from vision.core.progress import progress_bar
from vision.data.files import pillow
from vision.data.source import BadImage, Source, read_file
from vision.preprocess.decode import read

_SECONDS = 10.0  # time limit for checking the files of a split
# The files are checked in this number of passes. Each pass is spread over the whole split, so that
# a check that runs out of time has seen files of all parts of the split.
_PASSES = 16
_THREADS, _CHUNK = 8, 256
_NAMED = 5  # number of files that a warning names
_END_OF_PNG = b'\0\0\0\0IEND\xaeB`\x82'


class Found(NamedTuple):
    """Result of checking the files of a split.

    Attributes:
      corrupt: reasons for the files that cannot be read, by path.
      looked: number of files that were checked.
    """

    corrupt: dict[str, str]
    looked: int


def find_unreadable(source: Source, seconds: float = _SECONDS) -> Found:
    """Checks the first and last bytes of a split's files, and decodes those that look damaged.

    The check finds files that are missing, empty or cut off, and those that are not regular files
    or not images. Damage inside a file is found only when the file is decoded. The check reads
    27,000 JPEGs per second from the page cache on two shared cores.

    Args:
      source: the split; without files nothing is checked.
      seconds: time limit; files that were not checked by then are spread evenly over the split.
    """
    paths = source.paths or ()
    # Order the files by passes, and cut them into chunks for the threads.
    end, corrupt, looked = time.monotonic() + seconds, dict[str, str](), 0
    passes = (paths[start::_PASSES] for start in range(_PASSES))
    chunks = _chunks(itertools.chain.from_iterable(passes))

    def look(chunk: tuple[str, ...]) -> tuple[int, dict[str, str]]:
        done, reasons = 0, {}
        for path in chunk:
            if time.monotonic() > end:
                break
            done += 1
            if reason := why_unreadable(path):
                reasons[path] = reason
        return done, reasons

    # Threads mostly wait for the disk, so several help even on one core.
    with progress_bar() as start, ThreadPoolExecutor(_THREADS) as threads:
        move = start('checking files', len(paths))
        try:
            for done, reasons in threads.map(look, chunks):
                looked += done
                corrupt |= reasons
                move(looked)
        finally:
            end = 0.0  # after an interruption the threads stop at once
    return Found(corrupt, looked)


def _chunks(paths: Iterable[str]) -> Iterator[tuple[str, ...]]:
    paths = iter(paths)
    while chunk := tuple(itertools.islice(paths, _CHUNK)):
        yield chunk


def why_unreadable(path: str) -> str | None:
    """Returns the reason why a file cannot be read as an image, or None.

    Only the first and last bytes are checked, unless they look damaged.
    """
    try:
        # Open without blocking, because reading a pipe would wait forever.
        with open(path, 'rb', buffering=0, opener=_open_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return 'is not a regular file'
            head = file.read(32)
            if not head:
                return 'empty file'
            # Compare the end with the format's end marker.
            end = os.pread(
                file.fileno(), len(_END_OF_PNG), max(0, about.st_size - len(_END_OF_PNG))
            )
            if _looks_whole(head, end, about.st_size):
                return None
            data = head + file.readall()
    except (OSError, ValueError):
        try:
            data = read_file(path)  # raises the reason in plain words
        except BadImage as e:
            return str(e)
    try:
        # The file looks damaged: decode it to find the reason.
        if _ending_of(data) is None and _is_opened(data):
            return None  # no end marker or size to check, and decoding such files takes too long
        read(data)
    except BadImage as e:
        return str(e)
    return None


def _open_at_once(path: str, flags: int) -> int:
    """Opener that does not wait for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _ending_of(head: bytes) -> Callable[[bytes, int], bool] | None:
    """Returns a function of a file's last bytes and size that is true for a complete file.

    None for formats without an end marker or a stated size.
    """
    # JPEG, PNG and GIF have end markers; WebP and BMP state their size.
    if head.startswith(b'\xff\xd8\xff'):
        return lambda end, size: end.endswith(b'\xff\xd9')
    if head.startswith(b'\x89PNG\r\n\x1a\n'):
        return lambda end, size: end == _END_OF_PNG
    if head.startswith(b'GIF8'):
        return lambda end, size: end.endswith(b';')
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        return lambda end, size: int.from_bytes(head[4:8], 'little') + 8 <= size
    if head.startswith(b'BM'):
        return lambda end, size: int.from_bytes(head[2:6], 'little') <= size
    return None


def _looks_whole(head: bytes, end: bytes, size: int) -> bool:
    """True if a file of a known format looks complete (HEIF, AVIF and TIFF always do)."""
    is_whole = _ending_of(head)
    if is_whole is not None:
        return is_whole(end, size)
    return head[4:8] == b'ftyp' or head[:4] in (b'II*\0', b'MM\0*')


def _is_opened(data: bytes) -> bool:
    """True if Pillow recognises the data as an image."""
    try:
        pillow().open(io.BytesIO(data))
    except Exception:  # Pillow's plug-ins raise any exception for damaged files
        return False
    return True


def look_before_training(
    train: Source, validation: Source | None, test: Source | None, max_corrupt: float
) -> None:
    """Warns of unreadable images before any computation.

    The test split may have a larger fraction of unreadable images than `max_corrupt`, because test
    results report the number of skipped images.

    Raises:
      UserError: more than `max_corrupt` of train or validation cannot be read.
    """
    looked: dict[tuple[str, ...], dict[str, str]] = {}
    for source in (train, validation, test):
        if source is None or source.paths is None:
            continue
        if source.paths not in looked:  # validation and test may be the same files
            looked[source.paths] = processes.on_first(functools.partial(_corrupt_in, source))
        corrupt = looked[source.paths]
        if corrupt:
            # Name the first few.
            some = '; '.join(
                f'{path}: {why}' for path, why in itertools.islice(corrupt.items(), _NAMED)
            )
            more = f'; and {len(corrupt) - _NAMED} more' if len(corrupt) > _NAMED else ''
            logging.warning(
                '%s: %d images cannot be read: %s%s', source.name, len(corrupt), some, more
            )
        if source is not test:
            check_corrupt(corrupt, source, max_corrupt)


def _corrupt_in(source: Source) -> dict[str, str]:
    """Returns the reasons for a split's unreadable files, by path."""
    return find_unreadable(source).corrupt


def check_corrupt(corrupt: dict[str, str], source: Source, max_corrupt: float) -> None:
    """Raises UserError if more than `max_corrupt` of a split's examples could not be read."""
    if len(corrupt) > max_corrupt * source.num_examples:
        name, reason = next(iter(corrupt.items()))
        raise UserError(
            f'{source.name}: {len(corrupt)} images of {source.num_examples:,} could not be read so '
            f'far, more than data.max_corrupt={max_corrupt:g} allows; the first is {name}: '
            f'{reason}. Repair or remove them, or raise data.max_corrupt. A run that has started '
            'can only be resumed with the same files, so raise data.max_corrupt.'
        )
