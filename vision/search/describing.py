"""Description of a collection as shards, resumable and shared by processes.

The content of a shard depends only on its images, not on the order of the work or on interruptions.
A process claims a shard with a `flock` on a file in DIR/claims. When the process ends, the kernel
releases the lock, and another process can take over the shard. A shard is built in memory and then
written atomically. When a collection is described again, the rows of unchanged images are kept.
"""

import contextlib
import fcntl
import os
import socket
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from absl import logging

from vision.core.errors import UserError
from vision.core.progress import progress_bar
from vision.core.text import AnyPath, as_path, json_text
from vision.data.source import OF_SPLIT
from vision.prediction.classifier import Classifier
from vision.search import fingerprint
from vision.search.descriptions import (
    Named,
    describe_images,
    full_name,
    perceptual_hash,
)
from vision.search.fields import pyarrow, utf8
from vision.search.shards import (
    FORMAT,
    Manifest,
    count,
    is_shards,
    read_manifest,
    read_shard,
    schema,
    table_of,
    to_parquet,
    write,
)

_ROWS = 8192  # images of a shard: some seconds of work on a GPU, some minutes on a CPU
_BEFORE_MANIFEST = {'claims', '.lock', 'manifest.json.tmp'}  # a kill can leave these
_PAUSE = 0.5  # seconds between two attempts to claim shards that other processes hold


def describe(
    classifier: Classifier,
    images: Sequence[Named],
    output: AnyPath,
    endpoint: str = 'features',
    shared: bool = False,
    rows: int = _ROWS,
) -> dict[str, Any]:
    """Describes images and writes the shards; keeps the descriptions of unchanged images.

    An image is described again if the size or the modification time of its file has changed, or if
    it could not be read before. Images in the shards that are not among `images` are kept, and are
    marked as `gone` if their files no longer exist.

    Args:
      classifier: computes the vectors.
      images: the images.
      output: the folder of the shards, new or with a manifest of the same classifier.
      endpoint: see `Classifier.embed`.
      shared: share the work with other processes; False refuses a folder that another process uses.
      rows: the mean number of images per shard in a new folder.

    Returns:
      Counts over all shards (`images`, `gone` and `failed`); `described`, the number of images that
      this call described; and `errors`, the reasons for some of the images that it could not read,
      by path.

    Raises:
      UserError: the folder contains other files, or descriptions by another classifier; it cannot
        be written to, or is in use; a source has no random access; or no image can be read.
    """
    pyarrow(), perceptual_hash()  # report a missing library before the long work
    for some in images:
        if not some.source.indexed:
            raise UserError(
                f'{some.source.name} can only be read in order, so it cannot be described in '
                'shards; use `build` with --split, or data.in_memory=True'
            )
    total = sum(some.source.num_examples for some in images)
    # Lock the folder, and fix the number of shards at the first call.
    folder = _create(as_path(output))
    with _whole(folder, shared):
        manifest = _open_or_create(folder, classifier, endpoint, max(1, round(total / rows)))
        if total > 4 * rows * manifest.shards:
            logging.warning(
                '%s was begun with fewer images: each of its %d shards gets about %d, which a stop '
                'can lose and which must fit into memory; describe into a new folder',
                folder, manifest.shards, total // manifest.shards,
            )  # fmt: skip
        work = _Work(classifier, images, manifest)
        with progress_bar() as start:
            move, done = start('describing', total), 0
            waiting = list(range(manifest.shards))
            while waiting:
                # Try all shards; repeat those that other processes hold.
                busy = []
                for number in waiting:
                    if (claim := _take(folder / 'claims' / f'{number:05}', shared)) is None:
                        busy.append(number)
                        continue
                    with claim:
                        for more in work(number):
                            done += more
                            move(done)
                if len(busy) == len(waiting):
                    time.sleep(_PAUSE)
                waiting = busy
    # Count the images of all shards, including those that other processes have described.
    found = count(manifest)
    if found['images'] and found['images'] == found['failed']:
        example = next((f', for example {path}: {why}' for path, why in work.errors.items()), '')
        raise UserError(f'no image could be read{example}')
    return {**found, 'described': work.described, 'errors': work.errors}


class _Work:
    """Updates one shard after the other.

    Attributes:
      described: the number of images that were described.
      errors: the reasons for some of the images that could not be read.
    """

    def __init__(self, classifier: Classifier, images: Sequence[Named], manifest: Manifest):
        self._classifier, self._images, self._manifest = classifier, images, manifest
        self._began = time.time()
        self.described, self.errors = 0, dict[str, str]()
        # Sort all images by shard. Only one number per image is kept in memory.
        names = (full_name(some, i) for some in images for i in range(len(some.names)))
        share = np.fromiter((_share_of(name, manifest.shards) for name in names), np.int32)
        self._order = np.argsort(share, kind='stable')
        self._bounds = np.searchsorted(share[self._order], np.arange(manifest.shards + 1))
        self._starts = np.cumsum([0, *(len(s.names) for s in images)])

    def __call__(self, number: int) -> Iterator[int]:
        """Updates a shard, and yields the number of images done since the last yield."""
        pa, path = pyarrow(), self._manifest.shard(number)
        old = self._read(number)
        # Describe images with errors again if an earlier command recorded the errors.
        again = old is None or path.stat().st_mtime < self._began
        names = old['path'].to_pylist() if old is not None else []
        known = dict(zip(names, self._states(old, again), strict=True))
        # Compare the files with the shard to find the images that must be described.
        wanted = self._wanted(number)
        now = {name: _state(name) for name in names}
        for name, (which, example) in wanted.items():
            now[name] = _state(full_name(self._images[which], example))
        new = [n for n in wanted if n not in known or (now[n] and known[n] != now[n])]
        # An image that is named twice is described once, but the total counts it twice.
        yield int(self._bounds[number + 1] - self._bounds[number]) - len(new)
        tables = []
        for some, ids in self._by_source(wanted[name] for name in new):
            for about, vectors in describe_images(
                self._classifier, some, self._manifest.made_by['endpoint'], True, ids
            ):
                tables.append(table_of(about, vectors))
                self._note(tables[-1])
                yield len(about)
        # Keep the other rows, and mark the images that no longer exist.
        if old is not None:
            gone = pa.array([now[name] is None for name in names], pa.bool_())
            kept = old.set_column(old.schema.get_field_index('gone'), 'gone', gone)
            if not new and kept.equals(old):
                return
            replaced = set(new)
            tables.append(kept.filter(pa.array([n not in replaced for n in names], pa.bool_())))
        table = pa.concat_tables([schema(self._manifest.size).empty_table(), *tables])
        # Store the fingerprint in the shard, too, in case the shard is copied to another folder.
        made_by = {'made_by': json_text(self._manifest.made_by)}
        write(path, to_parquet(table.sort_by('path').replace_schema_metadata(made_by)))

    def _wanted(self, number: int) -> dict[str, tuple[int, int]]:
        """Returns (number of the source, id) of each image of a shard, by name in sorted order."""
        found: dict[str, tuple[int, int]] = {}
        for position in self._order[self._bounds[number] : self._bounds[number + 1]]:
            which = int(np.searchsorted(self._starts, position, 'right')) - 1
            example = int(position - self._starts[which])
            # If an image is named twice, use the first, as `build` does.
            found.setdefault(utf8(full_name(self._images[which], example)), (which, example))
        return dict(sorted(found.items()))

    def _by_source(self, places: Any) -> Iterator[tuple[Named, list[int]]]:
        ids: dict[int, list[int]] = {}
        for which, example in places:
            ids.setdefault(which, []).append(example)
        for which, examples in ids.items():
            yield self._images[which], examples

    def _read(self, number: int) -> Any:
        """Returns the table of a shard, or None if the shard is missing or damaged."""
        try:
            return read_shard(self._manifest, number)
        except FileNotFoundError:
            return None
        except UserError as e:
            logging.warning('%s; it is described again', e)
            return None

    def _states(self, table: Any, again: bool) -> Iterator[tuple | None]:
        """Yields (size, date) of each row of a shard, or () to describe the image again."""
        if table is None:
            return
        dates = table['date'].cast('int64').to_pylist()
        for size, date, error in zip(table['size'].to_pylist(), dates, table['error'].to_pylist()):
            yield () if error is not None and again else (size, date)

    def _note(self, table: Any) -> None:
        self.described += len(table)
        failed = table.select(['path', 'error']).filter(table['error'].is_valid())
        for row in failed.slice(0, 10 - len(self.errors)).to_pylist():
            self.errors[row['path']] = row['error']


def _create(folder: Path) -> Path:
    """Creates the folder of the shards; raises UserError if it contains other files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Look for the manifest last: another process may write it, and then shards, at any moment.
        ours = not {*os.listdir(folder)} - _BEFORE_MANIFEST or is_shards(folder)
        if ours:
            (folder / 'claims').mkdir(exist_ok=True)
    except OSError as e:
        raise UserError(f'--output={folder}: {e.strerror}') from None
    if not ours:
        raise UserError(f'--output={folder} has other files; name a new folder')
    return folder


def _open_or_create(folder: Path, classifier: Classifier, endpoint: str, shards: int) -> Manifest:
    """Returns the manifest; the first process writes it."""
    size = classifier.embedding_size(endpoint)
    with _take(folder / 'claims' / 'manifest', True, wait=True) or contextlib.nullcontext():
        if not is_shards(folder):
            about = {
                'format': FORMAT,
                'made_by': fingerprint.made_by(classifier, endpoint),
                'dimensions': size,
                'shards': shards,
                'vector': 'float16, little-endian',
                'shard_of_path': 'crc32(path) % shards',
            }
            write(folder / 'manifest.json', (json_text(about, indent=2) + '\n').encode())
    manifest = read_manifest(folder)
    fingerprint.check(
        manifest.made_by, classifier, endpoint, f'{folder}', 'describe into another folder'
    )
    return manifest


@contextlib.contextmanager
def _whole(folder: Path, shared: bool) -> Iterator[None]:
    """Holds the lock of the folder, exclusively or shared with other processes."""
    path = folder / '.lock'
    file = _take(path, shared, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    if file is None:
        with contextlib.suppress(OSError):
            holder = path.read_text().strip()
        raise UserError(
            f'--output={folder} is in use by {holder or "another process"}; to share the work, '
            'start each with --distributed'
        )
    with file:
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        yield


def _take(path: Path, shared: bool, how: int = fcntl.LOCK_EX, wait: bool = False) -> IO[str] | None:
    """Locks a file and returns it, or None if another process holds the lock.

    The lock is released when the file is closed.

    Raises:
      UserError: the file cannot be created, or the work is shared and the file system has no locks.
    """
    try:
        file = open(path, 'a+')  # noqa: SIM115 - closed by the caller
    except OSError as e:
        raise UserError(f'{path}: {e.strerror}') from None
    try:
        fcntl.flock(file, how | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError as e:
        if shared:
            raise UserError(
                f'{path}: --distributed needs a file system with locks ({e.strerror})'
            ) from None
    return file


def _share_of(name: str, shards: int) -> int:
    return zlib.crc32(utf8(name).encode()) % shards


def _state(name: str) -> tuple | None:
    """Returns (size, date) of a file, None if it is gone, or (None, None) for 'SPLIT:ID'."""
    try:
        about = os.stat(name)
    except (OSError, ValueError):
        return (None, None) if OF_SPLIT.fullmatch(name) else None
    return about.st_size, about.st_mtime_ns // 1000
