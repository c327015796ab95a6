"""Image files: which formats are read, where they lie, and what is passed over.

One list of formats serves folders, patterns, prediction, search and preview: what the installed Pillow
opens, with the plug-ins for HEIC, AVIF and JPEG XL where they are installed. A file that is named by
itself is read whatever its name ends in.
"""

import collections
import functools
import glob as globbing
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from vision.core.errors import UserError
from vision.core.progress import progress_bar, track

# Formats of Pillow that are no pictures, that it recognises without reading them, or that need
# Ghostscript, which would run what the file says.
_NOT_READ = {'BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF', 'EPS', 'IPTC'}
_OPENED_AS = {'MPO': 'JPEG'}  # formats that Pillow opens under another one's name
_PLUG_INS = ('pillow_heif', 'pi_heif', 'pillow_avif', 'pillow_jxl')
_TELL_EVERY = 1000  # files between moves of the bar

_told = set[str]()  # warnings: the splits of a folder are opened, and list it, in turn


@functools.cache
def pillow() -> Any:
    """`PIL.Image`, whose own limit on pixels, which only warns at first, makes way for ours."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings('ignore', module='PIL')  # damaged EXIF, of which millions exist
    _register_plug_ins()
    return Image


def _register_plug_ins() -> None:
    for name in _PLUG_INS:
        try:
            register = getattr(importlib.import_module(name), 'register_heif_opener', None)
        except ImportError:
            continue
        if register is not None:
            register()


def endings() -> frozenset[str]:
    """The endings of image files, in lower case: '.jpg', '.png', '.avif', …."""
    Image = pillow()
    _register_plug_ins()
    return frozenset(
        ending
        for ending, kind in Image.registered_extensions().items()
        if _OPENED_AS.get(kind, kind) in Image.OPEN and kind not in _NOT_READ
    )


class Listing(NamedTuple):
    """The images of a folder, at any depth.

    Attributes:
      images: their paths relative to it, with '/' between the parts, sorted.
      passed: how many files were passed over, by ending, or as 'hidden'.
      folders: the modification time of each folder that was read, by path, in nanoseconds.
    """

    images: list[str]
    passed: collections.Counter[str]
    folders: dict[str, int]


def images_below(root: str) -> list[str]:
    """Lists the images below a folder, and tells what was passed over.

    Hidden files and folders are passed over, and links that lead back to where one came from. Of
    linked folders that lead to each other each is read once.

    Returns:
      Paths relative to the folder, with '/' between the parts, sorted.

    Raises:
      UserError: a folder cannot be read.
    """
    listing = list_folder(root)
    tell_passed(root, listing.passed)
    return listing.images


def list_folder(root: str) -> Listing:
    """As `images_below`, and with it what was passed over, untold."""
    known, found = endings(), Listing([], collections.Counter(), {})
    seen = set[tuple[int, int]]()
    with progress_bar() as start:
        move = start(f'listing {os.path.basename(root)}', None)
        waiting = [('', root)]
        while waiting:
            prefix, folder = waiting.pop()
            about = _stat(folder)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            found.folders[folder] = about.st_mtime_ns
            for entry in _entries(folder):
                name, ending = entry.name, _ending(entry.name)
                if _is_folder(entry):
                    found.passed['hidden folder'] += name.startswith('.')
                    if _is_walked(entry, folder):
                        # Links are read last: a folder goes by its own name if it is there twice.
                        place = 0 if entry.is_symlink() else len(waiting)
                        waiting.insert(place, (f'{prefix}{name}/', entry.path))
                elif name.startswith('.'):
                    found.passed['hidden'] += ending in known
                elif ending not in known:
                    found.passed[ending or 'without an ending'] += 1
                elif not _is_file(entry):
                    found.passed['no file'] += 1
                else:
                    found.images.append(prefix + name)
                    if len(found.images) % _TELL_EVERY == 0:
                        move(len(found.images))
    found.images.sort()
    return found


def _ending(name: str) -> str:
    dot = name.rfind('.')
    return name[dot:].lower() if dot > 0 else ''


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where one may not look
        return False


def _is_file(entry: os.DirEntry) -> bool:
    """True if this can be read like a file, or is a link that leads nowhere: a pipe would be waited for."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def subfolders(root: str) -> list[str]:
    """The names of the folders in a folder, sorted as text; without hidden ones."""
    return sorted(e.name for e in _entries(root) if _is_folder(e) and _is_walked(e, root))


def _entries(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as e:
        raise UserError(f'{folder} cannot be read: {e.strerror}') from None


def _is_walked(entry: os.DirEntry, folder: str) -> bool:
    """True if a folder is neither hidden nor a link back to where one came from."""
    if entry.name.startswith('.'):
        return False
    return not (entry.is_symlink() and _leads_back(entry.path, folder))


def _stat(folder: str) -> os.stat_result:
    try:
        return os.stat(folder)
    except OSError as e:
        raise UserError(f'{folder} cannot be read: {e.strerror}') from None


def _leads_back(link: str, folder: str) -> bool:
    target, here = os.path.realpath(link), os.path.realpath(folder)
    return here == target or here.startswith(target.rstrip(os.sep) + os.sep)


def tell_passed(root: str, passed: collections.Counter[str]) -> None:
    """Warns of files that were passed over: how many, by ending."""
    if not passed.total():
        return
    kinds = ', '.join(f'{count:,} {kind}' for kind, count in passed.most_common(5) if count)
    more = ', …' if len(passed) > 5 else ''
    warn_once(
        f'{root}: {passed.total():,} files are passed over, as they are no images ({kinds}{more})'
    )


def warn_once(message: str) -> None:
    """Warns, unless the same was said before."""
    if message not in _told:
        _told.add(message)
        logging.warning('%s', message)


def expand(path: str) -> list[str]:
    """The images that a path names: a file, a folder, or a pattern (`*.png`, `**/*.jpg`).

    A file is kept whatever it is called and whether or not it exists, and the folders that a pattern begins
    with are taken as they are called where they exist. What a folder or pattern gives is sorted.

    Raises:
      UserError: a folder or pattern without images.
    """
    path = os.path.expanduser(path)
    if not is_path(path):
        return [path]
    if os.path.isdir(path):
        below = [os.path.join(path, name) for name in images_below(path)]
        if not below:
            raise UserError(f'{path}: the folder has no images')
        return below
    if os.path.exists(path) or not globbing.has_magic(path):
        return [path]
    known, passed = endings(), collections.Counter[str]()
    start = os.path.dirname(path)
    while not os.path.isdir(start or os.curdir):
        start = os.path.dirname(start)
    pattern = globbing.escape(start) + path[len(start) :]
    matches = []
    found = filter(os.path.isfile, globbing.iglob(pattern, recursive=True))
    for match in track(found, None, f'listing {path}'):
        ending = _ending(os.path.basename(match))
        if ending in known:
            matches.append(match)
        else:
            passed[ending or 'without an ending'] += 1
    tell_passed(path, passed)
    if not matches:
        raise UserError(f'{path}: no images match')
    return sorted(matches)


def is_path(name: str) -> bool:
    """True if a file can have this path: TensorFlow would read one with a zero byte up to there."""
    try:
        return b'\0' not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def is_utf8(name: str) -> bool:
    """True if a name can be written as UTF-8: a class's must be."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
