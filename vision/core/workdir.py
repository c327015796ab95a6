"""The workdir of a run: its files, how they are written, and its lock.

config.json        the resolved config
dataset.json       the data at the start of the run: classes, shapes, size and digest of each split
examples.json.gz   the examples of each split, from which the digests are computed
environment.json   versions, devices, git commit, command
changes.diff       uncommitted changes of the code, if there are any
modules/           user-defined modules that the config names
metrics.jsonl      one record per line, each with its `step`
events.out.*       the same records for TensorBoard
checkpoints/       Orbax checkpoints
interrupted/       the state at a step whose evaluation a signal stopped; kept until it is evaluated
"""

import datetime
import errno
import fcntl
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any, TextIO

from absl import logging
from ml_collections import ConfigDict

from vision.core import config as config_lib
from vision.core import processes, startup
from vision.core.config_keys import KEYS
from vision.core.errors import UserError, similar
from vision.core.text import AnyPath, as_path, json_text

INTERRUPTED = 'interrupted'  # folder in the workdir, see `vision.training.loop`
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tensorflow-cpu')
# A name 'package.module:Name' in config.json.
_OWN_MODULES = re.compile(r'"([A-Za-z_][\w.]*):[A-Za-z_]\w*"')


class Lock:
    """Context manager that reserves a workdir for one run.

    The lock is a `flock`, which the kernel releases when the process ends in any way, even by
    kill -9. Process 0 holds the lock for all processes.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / '.lock'

    def __enter__(self) -> 'Lock':
        self._file: TextIO | None = None
        processes.on_first(self._acquire)
        return self

    def _acquire(self) -> None:
        """Takes the lock and writes the holder's name into the file."""
        self._file = open(self._path, 'a+')  # noqa: SIM115 - closed by __exit__
        try:
            # Try to get the lock without waiting.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or 'another process'
            self._file.close()
            raise UserError(
                f'{self._path.parent} is in use by {holder}; wait for it, or choose another '
                '--workdir'
            ) from None
        except OSError as e:
            _go_on_without(e, self._path, 'two runs in this workdir would not notice each other')
        # Write the holder of the lock, for the message of another run.
        self._file.truncate(0)
        self._file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        self._file.flush()

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()


def locate(workdir: AnyPath) -> Path:
    """Returns the absolute path of a workdir, which need not exist.

    Raises:
      UserError: the name is empty, or is not valid UTF-8, which JSON and terminals need.
    """
    if workdir in ('', b''):
        raise UserError('--workdir is empty; name a folder')
    path = as_path(workdir).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f'--workdir={str(path)!r}: the name is not valid UTF-8; choose another'
        ) from None
    return path


def check_place(workdir: AnyPath) -> Path:
    """Checks that a workdir can be created or written to, without creating it.

    Returns:
      Its absolute path.

    Raises:
      UserError: it is a file, or it or the folder in which it would be created is not writable.
    """
    path = locate(workdir)
    # Find the nearest existing folder and try to create something in it.
    for place in (path, *path.parents):
        try:
            if not os.path.lexists(place):
                os.stat(place)  # raises the reason: a name too long, or an unreadable folder
        except FileNotFoundError:
            continue
        except OSError as e:
            raise UserError(f'--workdir={path}: {e.strerror} ({place})') from None
        if not place.is_dir():
            raise UserError(f'--workdir={path}: {place} is not a folder')
        try:
            os.rmdir(tempfile.mkdtemp(prefix='.write-', dir=place))
        except OSError as e:
            raise UserError(
                f'--workdir={path}: {place} cannot be written to: {e.strerror}'
            ) from None
        break
    return path


def create(workdir: AnyPath) -> Path:
    """Creates a workdir with its parents and returns its absolute path.

    Raises:
      UserError: it cannot be created or written to, or not all processes see it.
    """
    path = locate(workdir)

    def make() -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / '.lock').touch()
        except OSError as e:
            raise UserError(f'--workdir={path}: {e.strerror} ({e.filename})') from None

    # All processes must see the folder that process 0 created.
    def look() -> None:
        if not (path / '.lock').exists():
            raise UserError(
                f'--workdir={path} is missing on this machine; it must be on a file system that '
                'all machines share'
            )

    processes.on_first(make)
    processes.together(look)
    return path


def check_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Checks that the run in a workdir, if any, has this config; called on process 0 only.

    Raises:
      UserError: the workdir belongs to another config; lists the differences.
    """
    if (workdir / 'config.json').exists():
        # The paths of the data may differ if the run has recorded digests to compare the data by.
        known = (workdir / 'dataset.json').exists() and read_json(workdir, 'dataset.json')
        may_differ: tuple[str, ...] = config_lib.MAY_DIFFER
        if known and 'identity' in known:
            may_differ += config_lib.PLACES
        # Name the first differences.
        differ = config_lib.differences(read_config(workdir), config, may_differ)
        if differ:
            more = f' (and {len(differ) - 3} more)' if len(differ) > 3 else ''
            raise UserError(
                f'{workdir} holds a run with another config: {"; ".join(differ[:3])}{more}. '
                'Choose another --workdir, or use the same config'
            )


def describe(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes the config, user-defined modules, code changes and environment to the workdir."""
    if processes.is_first():
        text = config_lib.to_json(config)
        write_text(workdir / 'config.json', text)
        # Copy user-defined modules that the config names.
        if modules := set(_OWN_MODULES.findall(text)):
            from vision.core import own_code

            own_code.keep(workdir, modules)
        # Keep the uncommitted changes of the code.
        if changes := _git('diff', 'HEAD', '--', ':/*.py'):
            write_text(workdir / 'changes.diff', changes + '\n')
        else:
            (workdir / 'changes.diff').unlink(missing_ok=True)
        write_text(workdir / 'environment.json', json_text(environment(), indent=2) + '\n')


def read_config(workdir: Path) -> ConfigDict:
    """Reads a run's config.

    Raises:
      UserError: the folder is not a workdir, or the file is damaged.
    """
    # The config may name modules that were copied into the workdir.
    if (workdir / 'modules').is_dir():
        from vision.core import own_code

        own_code.make_importable(workdir)
    values = read_json(workdir, 'config.json')
    try:
        config = config_lib.from_plain(values)
        # Check the declared keys: the file may have been edited or damaged.
        whole = config.to_dict()
        for key in KEYS:
            key.check((whole[key.section] if key.section else whole)[key.leaf])
        return config
    except (AttributeError, LookupError, TypeError, ValueError, UserError) as e:
        raise UserError(f'{workdir / "config.json"} is damaged: {_first_line(e)}') from None


def read_json(workdir: Path, name: str) -> dict[str, Any]:
    """Reads a JSON file of the workdir.

    Raises:
      UserError: the folder is not a workdir, or the file is damaged.
    """
    try:
        value = json.loads(_read(workdir, name))
        if not isinstance(value, dict):
            raise ValueError('it is not a JSON object')
        if name == 'dataset.json':
            _check_dataset(value)
        return value
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f'{workdir / name} is damaged: {_first_line(e)}') from None


def _check_dataset(value: Mapping[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError if a value in `dataset.json` has a wrong type."""
    if not all(isinstance(name, str) for name in value['class_names']):
        raise ValueError('class_names must be text')
    # Shapes are [H, W, C] or missing.
    for shape in (value.get('input_shape'), value.get('image_shape')):
        sound = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)
        if not sound and shape is not None:
            raise ValueError(f'{shape!r:.60} is not a shape [H, W, C]')
    for name in ('mean', 'std'):
        if not all(isinstance(x, int | float) for x in value.get(name, ())):
            raise ValueError(f'{name} is not a list of numbers')


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_records(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records in metrics.jsonl, oldest first; an incomplete last line is skipped.

    Raises:
      UserError: any other line is damaged.
    """
    path = workdir / 'metrics.jsonl'
    # Text after the last line feed is an incomplete line.
    lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
            int(records[-1]['step'])  # every record has a step
        except (KeyError, TypeError, ValueError, RecursionError) as e:
            raise UserError(f'{path}, line {number}, is damaged: {_first_line(e)}') from None
    return records


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically: it is complete or absent even if the process is killed."""
    # Bytes of file names that are not UTF-8 become escapes that are valid JSON.
    write_bytes(path, text.encode('utf-8', 'backslashreplace'))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically: it is complete or absent even if the process is killed."""
    # Write another file completely, then rename it.
    temporary = path.with_name(path.name + '.tmp')
    with open(temporary, 'wb') as file:
        file.write(data)
        sync(file)
    replace(temporary, path)


def sync(file: IO) -> bool:
    """Flushes a file to the disk.

    Returns False, with one warning per run, if the file system does not support fsync.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as e:
        _go_on_without(
            e,
            file.name,
            'a power cut may lose written data, and no TensorBoard events are written',
        )
        return False
    return True


def replace(source: Path, target: Path) -> None:
    """Renames a file over another one atomically.

    If the file system cannot replace a file atomically, warns once and uses several steps.
    """
    try:
        os.replace(source, target)
    except OSError as e:
        _go_on_without(e, target, 'a kill at the wrong moment may lose this file')
        # Rename without replacing; as a last resort copy the bytes.
        target.unlink(missing_ok=True)
        try:
            os.rename(source, target)
        except OSError:
            target.write_bytes(source.read_bytes())
            source.unlink()


# Errors of calls that a file system does not support.
_NOT_THERE = {
    errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EPERM, errno.EINVAL,
    errno.EEXIST, errno.ENOTTY, errno.EXDEV,
}  # fmt: skip
_told: set[str] = set()


def _go_on_without(error: OSError, path: Any, consequence: str) -> None:
    """Warns once that the file system does not support a call; raises any other error again.

    Args:
      error: the error of the call.
      path: the file on which it was called.
      consequence: the risk of continuing without the call.
    """
    if error.errno not in _NOT_THERE:
        raise error
    if consequence not in _told:
        _told.add(consequence)
        logging.warning('%s: %s here (%s)', path, consequence, error.strerror)


def environment() -> dict[str, Any]:
    """Returns the environment of this process: versions, devices, git commit and command."""
    import jax

    # Versions of the packages that affect results.
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        'command': [sys.executable, *sys.argv],
        'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'python': platform.python_version(),
        'platform': platform.platform(),
        'versions': versions,
        'backend': jax.default_backend(),
        'devices': [d.device_kind for d in jax.devices()],
        'processes': jax.process_count(),
        'cpu_count': startup.available_cpus(),
        'environment': {
            k: os.environ[k] for k in ('XLA_FLAGS', 'JAX_PLATFORMS') if k in os.environ
        },
        'git': git_commit(),
    }


def git_commit() -> str | None:
    """Returns the git commit of the running code, with '+changes' appended if it was edited.

    None outside a git repository.
    """
    commit, changes = (
        _git('rev-parse', 'HEAD'),
        _git('status', '--porcelain', '-uno', '--', ':/*.py'),
    )
    return commit and commit + ('+changes' if changes else '')


def _git(*args: str) -> str | None:
    """Returns the output of git in the folder of this code; None without git or a repository."""
    command = ['git', '-C', str(Path(__file__).parent), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _read(workdir: Path, name: str) -> str:
    """Reads a file of a workdir as text; raises UserError if that fails."""
    try:
        return (workdir / name).read_text(encoding='utf-8')
    except FileNotFoundError:
        if workdir.is_dir():
            raise UserError(f'{workdir} is not a workdir: it has no {name}') from None
        raise UserError(f'{workdir} does not exist{similar(str(workdir))}') from None
    except NotADirectoryError:
        raise UserError(f'{workdir} is a file, but a workdir must be a folder') from None
    except OSError as e:
        raise UserError(f'{workdir / name}: {e.strerror}') from None
