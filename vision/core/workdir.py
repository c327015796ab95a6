"""The workdir: all that a run is.

config.json        the config, resolved
dataset.json       the data that the run was begun with: classes, shapes, number and digest of each split; written once
examples.json.gz   what the digests are of: the examples of each split
environment.json   versions, devices, git commit, command
changes.diff       what differed from that commit, if anything did
modules/           a user's own modules that the config names
metrics.jsonl      one record a line, each with its `step`
events.out.*       the same for TensorBoard
checkpoints/       Orbax's
interrupted/       the state of a step in whose evaluation a signal came, until it is evaluated
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
from vision.core import processes
from vision.core.config_keys import KEYS
from vision.core.errors import UserError
from vision.core.text import AnyPath, as_path, json_text

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tensorflow-cpu')
_OWN_MODULES = re.compile(r'"([A-Za-z_][\w.]*):[A-Za-z_]\w*"')  # in config.json


class Lock:
    """Holds a workdir for one run, as a context manager.

    A `flock`: whatever ends the process, kill -9 too, frees it. Process 0 holds it for all.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / '.lock'

    def __enter__(self) -> 'Lock':
        self._file: TextIO | None = None
        processes.on_first(self._acquire)
        return self

    def _acquire(self) -> None:
        self._file = open(self._path, 'a+')  # noqa: SIM115 - closed by __exit__
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or 'another process'
            self._file.close()
            raise UserError(
                f'{self._path.parent} is in use by {holder}; wait for it, or take another --workdir'
            ) from None
        except OSError as e:
            _go_on_without(e, self._path, 'two runs in this workdir would not see each other')
        self._file.truncate(0)
        self._file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        self._file.flush()

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()


def locate(workdir: AnyPath) -> Path:
    """Returns the absolute path of a workdir, whether or not it is there.

    Raises:
      UserError: the name is empty, or is not UTF-8, as JSON and the terminal need it.
    """
    if workdir in ('', b''):
        raise UserError('--workdir is empty; name a folder')
    path = as_path(workdir).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f'--workdir={str(path)!r}: its name is not UTF-8; take another') from None
    return path


def check_place(workdir: AnyPath) -> Path:
    """Checks that a workdir can be made or written to, and leaves nothing; returns its absolute path.

    Raises:
      UserError: it is a file, or it or the folder that it will be made in cannot be written to.
    """
    path = locate(workdir)
    for place in (path, *path.parents):
        try:
            if not os.path.lexists(place):
                os.stat(place)  # a name that is too long, or a folder that cannot be looked into
        except FileNotFoundError:
            continue
        except OSError as e:
            raise UserError(f'--workdir={path}: {e.strerror} ({place})') from None
        if not place.is_dir():
            raise UserError(f'--workdir={path}: {place} is no folder')
        try:
            os.rmdir(tempfile.mkdtemp(prefix='.write-', dir=place))
        except OSError as e:
            raise UserError(
                f'--workdir={path}: {place} cannot be written to: {e.strerror}'
            ) from None
        break
    return path


def create(workdir: AnyPath) -> Path:
    """Makes the folder, with its parents, and returns its absolute path.

    Raises:
      UserError: it cannot be made or written to, or not all processes see it.
    """
    path = locate(workdir)

    def make() -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / '.lock').touch()
        except OSError as e:
            raise UserError(f'--workdir={path}: {e.strerror} ({e.filename})') from None

    def look() -> None:
        if not (path / '.lock').exists():
            raise UserError(
                f'--workdir={path}: not here; it must be a folder that all machines share'
            )

    processes.on_first(make)
    processes.together(look)
    return path


def check_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Checks that the run that is there, if any, was made with this config; for the first process.

    The data may have moved, if the workdir has digests of them.

    Raises:
      UserError: the workdir belongs to another config; says what differs.
    """
    if (workdir / 'config.json').exists():
        known = (workdir / 'dataset.json').exists() and read_json(workdir, 'dataset.json')
        may_differ: tuple[str, ...] = config_lib.MAY_DIFFER
        if known and 'identity' in known:
            may_differ += config_lib.PLACES
        differ = config_lib.differences(read_config(workdir), config, may_differ)
        if differ:
            more = f' (and {len(differ) - 3} more)' if len(differ) > 3 else ''
            raise UserError(
                f'{workdir} holds a run with another config: {"; ".join(differ[:3])}{more}. '
                'Take another --workdir, or the same config'
            )


def describe(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes what the run and this process are."""
    if processes.is_first():
        text = config_lib.to_json(config)
        write_text(workdir / 'config.json', text)
        if modules := set(_OWN_MODULES.findall(text)):
            from vision.core import own_code

            own_code.keep(workdir, modules)
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
    if (workdir / 'modules').is_dir():
        from vision.core import own_code

        own_code.make_importable(workdir)
    values = read_json(workdir, 'config.json')
    try:
        config = config_lib.from_plain(values)
        whole = config.to_dict()
        for key in KEYS:
            key.check((whole[key.section] if key.section else whole)[key.leaf])
        return config
    except (AttributeError, LookupError, TypeError, ValueError, UserError) as e:
        raise UserError(f'{workdir / "config.json"} is damaged: {_first_line(e)}') from None


def read_json(workdir: Path, name: str) -> dict[str, Any]:
    """Reads one of the workdir's JSON files.

    Raises:
      UserError: the folder is not a workdir, or the file is damaged.
    """
    try:
        value = json.loads(_read(workdir, name))
        if not isinstance(value, dict):
            raise ValueError('it holds no object')
        if name == 'dataset.json':
            _check_dataset(value)
        return value
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f'{workdir / name} is damaged: {_first_line(e)}') from None


def _check_dataset(value: Mapping[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError where something in `dataset.json` is of another type."""
    if not all(isinstance(name, str) for name in value['class_names']):
        raise ValueError('class_names are not text')
    for shape in (value.get('input_shape'), value.get('image_shape')):
        sound = isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)
        if not sound and shape is not None:
            raise ValueError(f'{shape!r:.60} is no shape [H, W, C]')
    for name in ('mean', 'std'):
        if not all(isinstance(x, int | float) for x in value.get(name, ())):
            raise ValueError(f'{name} is no list of numbers')


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_records(workdir: Path) -> list[dict[str, Any]]:
    """Returns the records of a run, oldest first; a half-written last line is left out.

    Raises:
      UserError: another line is damaged.
    """
    path = workdir / 'metrics.jsonl'
    lines = path.read_bytes().split(b'\n')[:-1] if path.exists() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
            int(records[-1]['step'])  # each has one
        except (KeyError, TypeError, ValueError, RecursionError) as e:
            raise UserError(f'{path}, line {number}, is damaged: {_first_line(e)}') from None
    return records


def write_text(path: Path, text: str) -> None:
    """Writes a file, as UTF-8, whole or not at all, whenever the process is killed."""
    # What is not UTF-8 in a file's name is written as JSON's own escape.
    write_bytes(path, text.encode('utf-8', 'backslashreplace'))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, whenever the process is killed."""
    temporary = path.with_name(path.name + '.tmp')
    with open(temporary, 'wb') as file:
        file.write(data)
        sync(file)
    replace(temporary, path)


def sync(file: IO) -> bool:
    """Writes what was written to a file to the disk; returns False, and warns once, where the file system cannot."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as e:
        _go_on_without(
            e,
            file.name,
            'what is written may be lost in a power cut, and TensorBoard gets no events',
        )
        return False
    return True


def replace(source: Path, target: Path) -> None:
    """Gives a file the name of another, in one step; warns once where the file system cannot do it in one."""
    try:
        os.replace(source, target)
    except OSError as e:
        _go_on_without(e, target, 'a kill at the wrong moment may lose this file')
        target.unlink(missing_ok=True)
        try:
            os.rename(source, target)
        except OSError:
            target.write_bytes(source.read_bytes())
            source.unlink()


# What calls raise that a file system does not have.
_NOT_THERE = {
    errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EPERM, errno.EINVAL, errno.EEXIST, errno.ENOTTY,
    errno.EXDEV,
}  # fmt: skip
_told: set[str] = set()


def _go_on_without(error: OSError, path: Any, consequence: str) -> None:
    """Warns, once, of what a file system without some call does not protect; raises what is another failure."""
    if error.errno not in _NOT_THERE:
        raise error
    if consequence not in _told:
        _told.add(consequence)
        logging.warning('%s: %s here (%s)', path, consequence, error.strerror)


def environment() -> dict[str, Any]:
    """The environment of this process: versions, devices, git commit, command."""
    import jax

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
        'cpu_count': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'environment': {
            k: os.environ[k] for k in ('XLA_FLAGS', 'JAX_PLATFORMS') if k in os.environ
        },
        'git': git_commit(),
    }


def git_commit() -> str | None:
    """The commit of the code that runs, '+changes' behind it if it was edited; None outside git."""
    commit, changes = (
        _git('rev-parse', 'HEAD'),
        _git('status', '--porcelain', '-uno', '--', ':/*.py'),
    )
    return commit and commit + ('+changes' if changes else '')


def _git(*args: str) -> str | None:
    """The output of git in the folder of this code; None without git or a repository."""
    command = ['git', '-C', str(Path(__file__).parent), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _read(workdir: Path, name: str) -> str:
    try:
        return (workdir / name).read_text(encoding='utf-8')
    except FileNotFoundError:
        what = 'is not a workdir' if workdir.is_dir() else 'does not exist'
        raise UserError(f'{workdir} {what}: there is no {name} in it') from None
    except NotADirectoryError:
        raise UserError(f'{workdir} is a file; a workdir is a folder') from None
    except OSError as e:
        raise UserError(f'{workdir / name}: {e.strerror}') from None
