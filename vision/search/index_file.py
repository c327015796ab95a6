"""The file of an index: written as a whole, opened by mapping, and protected by checksums.

The file has these parts: the faiss index, which `faiss.read_index` can read; the table of names and
fields (an Arrow IPC file); the whitening of the vectors, if there is one; JSON with the attributes
of the index, the positions of the parts and checksums; and the length and CRC-32 of the JSON and a
marker. Files of version 2 have no checksum of the JSON; those of version 1 have the names in it.

To verify the checksum of all bytes takes as long as to read the file. A file that is only searched
is therefore trusted if its length, its first megabyte and its JSON are as they were written, and
its modification time is the one that the writer has set and noted in the JSON. Whatever writes to
the file changes this time. `verify` also finds damage that does not, such as that of a disk.
"""

import contextlib
import fcntl
import glob
import json
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vision.core.errors import UserError
from vision.core.text import json_text
from vision.search import fields
from vision.search.kinds import faiss

_MARKS = tuple(b'\nVISION-INDEX-%d\n' % i for i in (1, 2, 3))  # by version; the last one is written
_TAIL = struct.Struct('<QI')  # length and CRC-32 of the JSON; before version 3 only the length
_OLD_TAIL = struct.Struct('<Q')
# Bytes at the beginning. In an exact index all counts that faiss allocates memory by are there. The
# counts of the graph of `hnsw` and of the lists of `ivfpq` lie beyond them.
_HEAD = 1 << 20
_ABANDONED = 3600  # seconds after which a temporary file that no process has locked is removed
_ALIGN = 64  # bytes; the table starts at a multiple of this, so that it can be mapped
Version = tuple[int, ...]


class Content(NamedTuple):
    """Contents of an index file.

    Attributes:
      index: the faiss index.
      table: the images, see `fields.table`.
      about: attributes of the index for JSON.
      whitening: the bytes of the whitening, or None.
    """

    index: Any
    table: Any
    about: dict[str, Any]
    whitening: bytes | None = None


def write(path: Path, content: Content, before: Version | None) -> Version:
    """Writes an index file atomically; processes that have opened the old file can read on.

    Args:
      path: the file.
      content: the parts of the file.
      before: the version that the index was loaded from; None if it was not.

    Returns:
      The version of the new file.

    Raises:
      UserError: the file cannot be written, or another process has written it since it was loaded.
    """
    _check_version(path, before)
    # Write to a temporary file, flush it to the disk, and rename it.
    temporary = path.with_name(f'{path.name}.{secrets.token_hex(4)}.tmp')
    _remove_abandoned(path)
    try:
        with open(temporary, 'w+b') as file:
            with contextlib.suppress(OSError):  # the file system has no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_parts(file, content)
            # Check again after writing, while the lock keeps other processes from replacing it.
            with _locked(path):
                _check_version(path, before)
                os.replace(temporary, path)
                return version(path) or ()
    except OSError as e:
        raise UserError(f'--index={path}: {e.strerror}') from None
    finally:
        temporary.unlink(missing_ok=True)


def _write_parts(file: BinaryIO, content: Content) -> None:
    checksum = 0

    def put(data: bytes) -> int:
        nonlocal checksum
        checksum = zlib.crc32(data, checksum)
        return file.write(data)

    faiss().write_index(content.index, faiss().PyCallbackIOWriter(put))
    put(bytes(-file.tell() % _ALIGN))
    about = {**content.about, 'table': [file.tell(), put(fields.to_bytes(content.table))]}
    if content.whitening is not None:
        about['whitening'] = [file.tell(), put(content.whitening)]
    about |= {'bytes': file.tell(), 'crc32': checksum, 'head': _checksum(file, _HEAD)}
    # Note a time in the JSON, and set it when everything is written. Subtracting a nanosecond makes
    # it differ from the time of a change in the same tick of the system's clock. Set it once before,
    # because the file system may round it, perhaps to whole seconds: note what it makes of it.
    file.seek(0, os.SEEK_END)
    about['modified'] = os.fstat(file.fileno()).st_mtime_ns - 1
    with contextlib.suppress(OSError):
        os.utime(file.fileno(), ns=(about['modified'], about['modified']))
        about['modified'] = os.fstat(file.fileno()).st_mtime_ns
    data = json_text(about).encode()
    file.write(data + _TAIL.pack(len(data), zlib.crc32(data)) + _MARKS[-1])
    file.flush()
    os.fsync(file.fileno())
    with contextlib.suppress(OSError):  # without it, readers verify the whole file
        os.utime(file.fileno(), ns=(about['modified'], about['modified']))


def check_replaceable(path: Path) -> None:
    """Raises UserError if a file that is not an index would be overwritten."""
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, path.stat().st_size - len(_MARKS[0])))
            ours = file.read() in _MARKS
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UserError(f'--index={path} exists and is not an index; choose another name')


def read(path: Path, read_only: bool = False) -> tuple[Content, Version]:
    """Reads an index file.

    Args:
      path: the file.
      read_only: map the file instead of reading it into memory, and verify all of its bytes only
        if it was modified after it was written.

    Returns:
      The content, and the version of the file.

    Raises:
      UserError: the file does not exist, is not an index of this project, or is damaged.
    """
    faiss()
    with in_a_line(path), open(path, 'rb') as file:
        about, whole = _about(file)
        unchanged = about.get('modified') == os.fstat(file.fileno()).st_mtime_ns
        # Verify before faiss reads the bytes: with a damaged count, faiss could allocate any amount
        # of memory.
        if read_only and unchanged:
            _match(about, 'head', file, min(whole, _HEAD))
        else:
            _match(about, 'crc32', file, whole)
        return _content(file, about, read_only), version(file.fileno()) or ()


def verify(path: Path) -> None:
    """Reads the whole file and compares it with its checksum.

    If the file is sound, its modification time becomes the one that was noted when it was written,
    so that a copy whose time is another can be opened without reading it.

    Raises:
      UserError: the file does not exist, is not an index of this project, or is damaged.
    """
    with in_a_line(path), open(path, 'rb') as file:
        about, whole = _about(file)
        if 'crc32' not in about:
            raise UserError(
                f'--index={path}: files of this earlier version have no checksum; `build` it again'
            )
        _match(about, 'crc32', file, whole)
        if 'modified' in about:
            with contextlib.suppress(OSError):  # it is someone else's file
                os.utime(file.fileno(), ns=(about['modified'], about['modified']))


def version(path: Path | int) -> Version | None:
    """Returns a file's inode, size and modification time (ns), or None if it does not exist."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _about(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Reads the JSON at the end of a file, and the number of bytes before it."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - len(_MARKS[0])))
    mark = file.read()
    if mark not in _MARKS:
        raise ValueError('it has no list of images')
    shape = _TAIL if mark == _MARKS[-1] else _OLD_TAIL
    end = size - len(mark) - shape.size
    file.seek(max(0, end))
    length, *checksum = shape.unpack(file.read(shape.size))
    if length > end:
        raise ValueError('it is cut off')
    file.seek(end - length)
    data = file.read(length)
    if checksum and checksum[0] != zlib.crc32(data):
        raise ValueError('its checksum does not match')
    about = json.loads(data)
    if about.get('bytes', end - length) != end - length:
        raise ValueError('it has lost some bytes')
    return about, end - length


def _content(file: BinaryIO, about: dict[str, Any], read_only: bool) -> Content:
    # Version 1 has the names in the JSON.
    table = fields.map_file(file, *about['table']) if 'table' in about else None
    table = fields.table(about['names']) if table is None else table
    file.seek(0)
    # The file at the path may have been replaced, so that faiss must map the open file.
    if read_only:
        # faiss has different flags to map the lists of an IVF index and the vectors of other kinds.
        of_lists = file.read(2) == b'Iw'
        flag = faiss().IO_FLAG_MMAP if of_lists else faiss().IO_FLAG_MMAP_IFC
        os.lseek(file.fileno(), 0, os.SEEK_SET)  # /dev/fd of macOS shares the position
        index = faiss().read_index(f'/dev/fd/{file.fileno()}', flag)
    else:
        index = faiss().read_index(faiss().PyCallbackIOReader(file.read))
    if index.ntotal != len(table):
        raise ValueError(f'{index.ntotal} vectors for {len(table)} images')
    whitening = None
    if 'whitening' in about:
        start, length = about['whitening']
        file.seek(start)
        whitening = file.read(length)
    return Content(index, table, about, whitening)


def _match(about: dict[str, Any], key: str, file: BinaryIO, size: int) -> None:
    """Raises ValueError unless the first bytes have the checksum that the JSON has for them."""
    if key in about and about[key] != _checksum(file, size):
        raise ValueError('its checksum does not match')


def _checksum(file: BinaryIO, size: int) -> int:
    """Returns the CRC-32 of the first `size` bytes of a file."""
    file.seek(0)
    checksum = 0
    while size and (data := file.read(min(size, 1 << 24))):
        checksum, size = zlib.crc32(data, checksum), size - len(data)
    return checksum


@contextlib.contextmanager
def in_a_line(path: Path) -> Iterator[None]:
    """Turns everything that a damaged or missing file can raise into a UserError."""
    try:
        yield
    except OSError as e:
        raise UserError(f'--index={path}: {e.strerror}; create it with `build`') from None
    except (ValueError, RuntimeError, LookupError, TypeError, MemoryError, AttributeError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[-1]
        raise UserError(
            f'--index={path} is not an index of images, or is damaged ({reason})'
        ) from None


def _check_version(path: Path, before: Version | None) -> None:
    """Raises UserError if another process has written the file since it was loaded."""
    if before and version(path) not in (None, before):
        raise UserError(
            f'--index={path} was changed by another process in the meantime; '
            'run the same command again'
        )


def _remove_abandoned(path: Path) -> None:
    """Removes temporary files of processes that were killed: old ones that no process has locked."""
    for old in path.parent.glob(f'{glob.escape(path.name)}.{"[0-9a-f]" * 8}.tmp'):
        # NFS grants exclusive locks only on files that are open for writing.
        with contextlib.suppress(OSError), open(old, 'r+b') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > _ABANDONED:
                old.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock (`flock`) on the current version of a file, if the file system has locks.

    All processes that have loaded this version and want to replace it wait for this lock.
    """
    try:
        # NFS grants exclusive locks only on files that are open for writing.
        file = open(path, 'r+b' if os.access(path, os.W_OK) else 'rb')  # noqa: SIM115
    except FileNotFoundError:
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
