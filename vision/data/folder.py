"""Sources of image folders: a data set with a subfolder per class, and files to predict."""

import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError, similar
from vision.data import files as files_lib
from vision.data.files import warn_once
from vision.data.shares import (
    ALL,
    SPLITS,
    Share,
    Shares,
    check_split,
    in_order,
    preferred,
    some_of,
    source_of,
    split_named,
)
from vision.data.source import FileSource

# If a folder has not changed for this many nanoseconds, its next change is sure to get another
# modification time.
_AT_REST = 2_000_000_000


def folder(
    split: str,
    path: str | None,
    validation: Share = None,
    test: Share = None,
    fold: str | None = None,
    rules: int = 2,
) -> FileSource:
    """Opens one split of a folder of images.

    The layout is `path/CLASS/…/image` or `path/SPLIT/CLASS/…/image`, where SPLIT is train
    (training), val (valid, validation) or test (testing).

    In the first layout each class is split by ranking hashes of its images' paths: 8/10 train, 1/10
    validation, 1/10 test, or the shares of the arguments. When files are added or removed, few
    other images change their split. In the second layout, if there is no val, 1/10 of train becomes
    validation. If there is val but no test, val is used as both, because ImageNet's test labels are
    not public.

    Args:
      split: train, validation or test, or 'all' for the images of all splits, each once.
      path: the folder. Hidden files and files without an image suffix are skipped.
      validation: share of each class, '10%' or 0.1, or a total number of images; 0 for none.
      test: in the same form.
      fold: 'K/N': the test split is the K-th of N disjoint parts, counted from 1.
      rules: version of the rules. Runs that were started with version 1 keep its order of classes
        (sorted as text) and its splits (by each image's hash alone).

    Raises:
      UserError: the folder does not exist or has no images, a class has no images, or the split is
        empty.
    """
    check_split(split)
    if not path:
        raise UserError('data.path is not set; set it with --config.data.path=…')
    root = os.path.abspath(os.path.expanduser(path))
    if os.path.isfile(root):
        raise UserError(f'data.path={path!r} is a file; name the folder above the class folders')
    if not os.path.isdir(root):
        raise UserError(f'data.path={path!r}: no such folder{similar(path)}')
    shares = Shares(validation, test, fold, rules)
    # Without split folders, split the images by hash.
    own = split_folders(root)
    if not own:
        classes = _classes(root, rules)
        images = _labelled(root, classes)
        return shares.choose(root, split, classes, _placed(root, images), shares.parts(images))
    # Otherwise the splits are given as folders, at least train.
    if 'train' not in own:
        raise UserError(f'{root} has {", ".join(sorted(own.values()))} but no folder train')
    return _given_split(root, split, own, shares)


def files(paths: Sequence[str]) -> FileSource:
    """Opens images to predict, with label −1 and no classes.

    Args:
      paths: files, which are kept regardless of their suffix, even if they do not exist; folders,
        with all images at any depth; and patterns (`*.png`, `**/*.jpg`). The order is kept, and
        images of a folder or pattern are sorted.

    Raises:
      UserError: a folder or pattern has no images.
    """
    found = [image for path in paths for image in files_lib.expand(path)]
    if not found:
        raise UserError('no images were given')
    return FileSource('files', (), tuple(found), np.full(len(found), -1, np.int32))


def split_folders(root: str) -> dict[str, str]:
    """Returns the split folders of a data set: {'validation': 'val', …}; {} if there are none.

    A single folder called `test` among other folders is a class. Folders with at least two of the
    three names are splits.
    """
    names = files_lib.subfolders(root)
    # Find the folders of each split, the preferred name first.
    every = {s: preferred(n for n in names if split_named(n) == s) for s in SPLITS}
    own = {split: found[0] for split, found in every.items() if found}
    # Folders of a single split are classes, unless `train` is the only folder.
    if len(own) < 2 and not list(own.values()) == names == every['train'][:1]:
        if 'train' in own and files_lib.subfolders(os.path.join(root, own['train'])):
            warn_once(
                f'{root}: {own["train"]} is treated as a class, because there is no folder val or '
                'test beside it'
            )
        return {}
    # Warn of a second folder for a split, and of folders that are no split.
    for split, found in every.items():
        if len(found) > 1:
            warn_once(f'{root} has {" and ".join(found)}: {found[0]} is the {split} split')
    if unused := [name for name in names if split_named(name) is None]:
        warn_once(f'{root}: folders beside the splits are skipped: {some_of(unused)}')
    return own


# The last listing by the path of its folder: the modification times of all folders, and the images.
_listing: dict[str, tuple[dict[str, int], Any]] = {}


def _classes(root: str, rules: int) -> tuple[str, ...]:
    """Returns the names of the class folders in the order of the labels."""
    classes = in_order(files_lib.subfolders(root), rules)
    if not classes:
        raise UserError(f'{root} has no subfolders; put the images of each class in a subfolder')
    for name in classes:
        if not files_lib.is_utf8(name):
            raise UserError(
                f'{root}: the name of the class folder {os.fsencode(name)!r} is not valid UTF-8; '
                'rename it'
            )
    return classes


def _labelled(root: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Returns (path relative to root, label) for all images of these classes, sorted by path."""
    index = {name: label for label, name in enumerate(classes)}
    found, beside = [], 0
    # The first folder of a path is the class.
    for path in _list(root):
        name, inside, _ = path.partition('/')
        if inside:
            found.append((path, index[name]))
        else:
            beside += 1
    if beside:
        warn_once(f'{root}: {beside:,} images are skipped, because they are not in a class folder')
    if empty := set(index.values()).difference(label for _, label in found):
        raise UserError(f'{os.path.join(root, classes[min(empty)])}: the class has no images')
    return found


def _list(root: str) -> list[str]:
    """Returns the images below a folder; the listing is reused while no folder in it changes.

    All splits of a folder thus need only one listing.
    """
    known = _listing.get(root)
    if known and all(_modified(folder) == when for folder, when in known[0].items()):
        return known[1]
    # List the folder again.
    begin = time.time_ns()
    listing = files_lib.list_folder(root)
    files_lib.tell_passed(root, listing.passed)
    # Keep the listing only if every later change is sure to change a modification time.
    _listing.clear()
    if max(listing.folders.values()) < begin - _AT_REST:
        _listing[root] = listing.folders, listing.images
    return listing.images


def _modified(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def _given_split(root: str, split: str, own: dict[str, str], shares: Shares) -> FileSource:
    """Opens one split of a folder that has split folders."""
    # Refuse arguments for splits that are given as folders.
    for given, keys in (('validation', ['validation']), ('test', ['test', 'fold'])):
        if given in own:
            shares.refuse(f'{root} has the folder {own[given]}', *keys)
    classes = _classes(os.path.join(root, own['train']), shares.rules)
    if split == ALL:
        # A split folder that is a link to another one is read once.
        distinct = dict[str, str]()
        for name in (own[split] for split in SPLITS if split in own):
            distinct.setdefault(os.path.realpath(os.path.join(root, name)), name)
        parts = [_of_split(root, name, classes) for name in distinct.values()]
        images = list(itertools.chain.from_iterable(parts))
        return source_of(f'{root}:{split}', classes, _placed(root, images))
    # Without a test folder, the validation folder serves as both, unless a test share is given.
    asked = shares.given['test'] is not None or shares.given['fold'] is not None
    if 'test' not in own and 'validation' in own and not asked:
        own = own | {'test': own['validation']}
    if split in own and split != 'train':
        images = _of_split(root, own[split], classes)
        return source_of(f'{root}:{split}', classes, _placed(root, images))
    # Missing splits are taken from train.
    images = _of_split(root, own['train'], classes)
    made = [other for other in ('validation', 'test') if other not in own]
    return shares.choose(root, split, classes, _placed(root, images), shares.parts(images, made))


def _placed(root: str, images: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Returns the images with absolute paths."""
    below = os.path.join(root, '')
    return [(below + path, label) for path, label in images]


def _of_split(root: str, name: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Lists the images of a split folder, which must have the classes of train."""
    here = os.path.join(root, name)
    there = set(files_lib.subfolders(here))
    if surplus := sorted(there.difference(classes)):
        raise UserError(f'{here}: class {surplus[0]!r} is not among the classes of train')
    if missing := [name for name in classes if name not in there]:
        raise UserError(f'{here}: class {missing[0]!r} has no folder')
    return [(f'{name}/{path}', label) for path, label in _labelled(here, classes)]
