"""Listing of image files in folders and by patterns, and the formats that are read.

Folders, patterns, prediction, search and preview read the same formats: those that the installed
Pillow opens, including HEIC, AVIF and JPEG XL if their plug-ins are installed. A file that is named
explicitly is read regardless of its suffix.
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

# Pillow formats that are not images, that Pillow recognises but cannot read, or that need
# Ghostscript, which would execute code in the file.
_NOT_READ = {'BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF', 'EPS', 'IPTC'}
_OPENED_AS = {'MPO': 'JPEG'}  # formats that Pillow opens with the reader of another format
_PLUG_INS = ('pillow_heif', 'pi_heif', 'pillow_avif', 'pillow_jxl')
# Folders of macOS archives, Synology, Windows and ext4.
_OF_SYSTEMS = {'__MACOSX', '@eaDir', '$RECYCLE.BIN', 'System Volume Information', 'lost+found'}
_TELL_EVERY = 1000  # files between updates of the progress bar

# Messages of the warnings so far. Without this, opening each split of a folder would repeat them.
_told = set[str]()


@functools.cache
def pillow() -> Any:
    """Returns `PIL.Image` with its plug-ins, and without its own limit on pixels.

    Pillow's limit only warns at first; `vision.preprocess` has a strict limit.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings('ignore', module='PIL')  # damaged EXIF data is very common
    _register_plug_ins()
    return Image


def _register_plug_ins() -> None:
    """Imports the installed plug-ins; those for HEIF must also be registered."""
    for name in _PLUG_INS:
        try:
            register = getattr(importlib.import_module(name), 'register_heif_opener', None)
        except ImportError:
            continue
        if register is not None:
            register()


def endings() -> frozenset[str]:
    """Returns the suffixes of readable image files in lower case: '.jpg', '.png', '.avif', …."""
    Image = pillow()
    _register_plug_ins()
    return frozenset(
        ending
        for ending, kind in Image.registered_extensions().items()
        if _OPENED_AS.get(kind, kind) in Image.OPEN and kind not in _NOT_READ
    )


def is_read(kind: str | None) -> bool:
    """Returns True if images of a Pillow format are read: 'PNG', but not 'EPS'."""
    return kind not in _NOT_READ


class Listing(NamedTuple):
    """The images of a folder, at any depth.

    Attributes:
      images: sorted paths relative to the folder, with '/' between the parts.
      passed: number of skipped files by suffix or under a word such as 'hidden', and of skipped
        folders by name, 'folder @eaDir'.
      folders: modification time of each folder that was read, by path, in nanoseconds.
    """

    images: list[str]
    passed: collections.Counter[str]
    folders: dict[str, int]


def images_below(root: str) -> list[str]:
    """Lists the images below a folder, and warns of skipped files.

    Hidden files and folders are skipped, and so are links to a parent folder. A folder that several
    links lead to is read once.

    Returns:
      Sorted paths relative to the folder, with '/' between the parts.

    Raises:
      UserError: a folder cannot be read.
    """
    listing = list_folder(root)
    tell_passed(root, listing.passed)
    return listing.images


def list_folder(root: str) -> Listing:
    """Lists the images below a folder and counts skipped files, without a warning.

    The rules are those of `images_below`.
    """
    # Walk the folders with a stack instead of recursion, which has a depth limit.
    known, found = endings(), Listing([], collections.Counter(), {})
    seen = set[tuple[int, int]]()
    with progress_bar() as start:
        move = start(f'listing {os.path.basename(root)}', None)
        waiting = [('', root)]
        while waiting:
            # Read each folder once, however many links lead to it.
            prefix, folder = waiting.pop()
            about = _stat(folder)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            found.folders[folder] = about.st_mtime_ns
            # Queue subfolders, keep images, and count the rest.
            for entry in _entries(folder):
                name, ending = entry.name, _ending(entry.name)
                if _is_folder(entry):
                    if _is_hidden_folder(name):
                        kind = 'hidden folder' if name.startswith('.') else 'folder'
                        found.passed[f'{kind} {name}'] += 1
                    if _is_walked(entry, folder):
                        # Read links last, so that a folder is listed under its own name.
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
    """Returns the suffix of a file name in lower case; '' if it has none."""
    dot = name.rfind('.')
    return name[dot:].lower() if dot > 0 else ''


def _is_folder(entry: os.DirEntry) -> bool:
    """Returns True for a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into an unreadable folder
        return False


def _is_file(entry: os.DirEntry) -> bool:
    """Returns True for a file or a broken link, but not for a pipe, on which reading would block.

    A broken link is reported later as an unreadable image.
    """
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def subfolders(root: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted as text, without hidden ones."""
    return sorted(e.name for e in _entries(root) if _is_folder(e) and _is_walked(e, root))


def _entries(folder: str) -> Iterator[os.DirEntry]:
    """Yields the entries of a folder; raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as e:
        raise UserError(f'{folder} cannot be read: {e.strerror}') from None


def _is_walked(entry: os.DirEntry, folder: str) -> bool:
    """Returns True unless a folder is hidden, or a link to the folder it is in or to a parent."""
    if _is_hidden_folder(entry.name):
        return False
    return not (entry.is_symlink() and _leads_back(entry.path, folder))


def _is_hidden_folder(name: str) -> bool:
    """Returns True for hidden folders and those that systems add, with copies and thumbnails."""
    return name.startswith('.') or name in _OF_SYSTEMS


def in_system_folder(path: str) -> bool:
    """Returns True if a part of a path is a folder that systems add, such as @eaDir."""
    return not _OF_SYSTEMS.isdisjoint(path.split('/'))


def _stat(folder: str) -> os.stat_result:
    try:
        return os.stat(folder)
    except OSError as e:
        raise UserError(f'{folder} cannot be read: {e.strerror}') from None


def _leads_back(link: str, folder: str) -> bool:
    """Returns True if a link leads to a folder or to one of its parents."""
    target, here = os.path.realpath(link), os.path.realpath(folder)
    return here == target or here.startswith(target.rstrip(os.sep) + os.sep)


def tell_passed(root: str, passed: collections.Counter[str]) -> None:
    """Warns how many files and folders were skipped, by suffix and name."""
    if not passed.total():
        return
    kinds = ', '.join(f'{count:,} {kind}' for kind, count in passed.most_common(5) if count)
    more = ', …' if len(passed) > 5 else ''
    help = '; to read .heic: pip install pillow-heif' if passed['.heic'] + passed['.heif'] else ''
    what = 'files and folders' if any('folder ' in kind for kind in passed) else 'files'
    warn_once(
        f'{root}: {passed.total():,} {what} are skipped, because they are hidden, of the system, or '
        f'not images that can be read ({kinds}{more}){help}'
    )


def warn_once(message: str) -> None:
    """Logs a warning, unless the same message was logged before."""
    if message not in _told:
        _told.add(message)
        logging.warning('%s', message)


def expand(path: str) -> list[str]:
    """Returns the images that a path stands for: a file, a folder, or a pattern such as `**/*.jpg`.

    A file is kept regardless of its suffix, even if it does not exist. Images of a folder or
    pattern are sorted. Existing folders at the start of a pattern are taken literally: brackets in
    their names match only brackets.

    Raises:
      UserError: a folder or pattern has no images.
    """
    path = os.path.expanduser(path)
    if not is_path(path):
        return [path]
    # A folder: take all its images.
    if os.path.isdir(path):
        below = [os.path.join(path, name) for name in images_below(path)]
        if not below:
            raise UserError(f'{path}: the folder has no images')
        return below
    # A file, or a name without wildcards.
    if os.path.exists(path) or not globbing.has_magic(path):
        return [path]
    # Escape the existing folders at the start of the pattern, then match the rest.
    known, passed = endings(), collections.Counter[str]()
    start = os.path.dirname(path)
    while not os.path.isdir(start or os.curdir):
        start = os.path.dirname(start)
    pattern = globbing.escape(start) + path[len(start) :]
    matches = []
    # Folders that systems add are read only if the pattern names them.
    hidden = _OF_SYSTEMS.difference(path.split(os.sep))
    found = filter(os.path.isfile, globbing.iglob(pattern, recursive=True))
    for match in track(found, None, f'listing {path}'):
        ending = _ending(os.path.basename(match))
        if within := hidden.intersection(match.split(os.sep)):
            passed[f'in {min(within)}'] += 1
        elif ending in known:
            matches.append(match)
        else:
            passed[ending or 'without an ending'] += 1
    tell_passed(path, passed)
    if not matches:
        raise UserError(f'{path}: no images match')
    return sorted(matches)


def is_path(name: str) -> bool:
    """Returns True if a file can have this path.

    TensorFlow would silently cut a path at a zero byte.
    """
    try:
        return b'\0' not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def is_utf8(name: str) -> bool:
    """Returns True if a name can be encoded as UTF-8, which class names require."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
