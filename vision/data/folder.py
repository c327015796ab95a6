"""Folders of images: those with a subfolder per class, and files to predict."""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.data import files as files_lib
from vision.data.files import warn_once
from vision.data.shares import (
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

_AT_REST = 2_000_000_000  # nanoseconds after which a folder's modification time tells of any change


def folder(
    split: str,
    path: str | None,
    validation: Share = None,
    test: Share = None,
    fold: str | None = None,
    rules: int = 2,
) -> FileSource:
    """Opens one split of a folder of images.

    Either `path/CLASS/…/image` or `path/SPLIT/CLASS/…/image`, where SPLIT is train (training),
    val (valid, validation) or test (testing). In the first case each class is split by the rank of a hash of its images'
    paths below `path`: 8/10 train, 1/10 validation, 1/10 test, or as the keys say. Where files are added
    or removed few others move. If a folder has train and test but no val, 1/10 of train is validation;
    with train and val but no test, val is both: ImageNet's own test labels are not public.

    Args:
      split: train, validation or test.
      path: of the folder. Hidden files and what has no image's ending are passed over.
      validation: share of each class, '10%' or 0.1, or a number of images in all; 0 for none.
      test: likewise.
      fold: 'K/N': test is the K-th of N parts, from 1, which are disjoint and together all images.
      rules: 2; of runs that were begun under version 1 the order of classes and the splits stay:
        classes sorted as text, and each image's split decided by its own hash alone.

    Raises:
      UserError: no such folder, no images, a class without images, or an empty split.
    """
    check_split(split)
    if not path:
        raise UserError('data.path is not set; name it with --config.data.path=…')
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
        raise UserError(f'data.path={path!r}: no such folder')
    shares = Shares(validation, test, fold, rules)
    own = split_folders(root)
    if not own:
        classes = _classes(root, rules)
        images = _labelled(root, classes)
        return shares.choose(root, split, classes, _placed(root, images), shares.parts(images))
    if 'train' not in own:
        raise UserError(f'{root} has {", ".join(sorted(own.values()))} but no folder train')
    return _given_split(root, split, own, shares)


def files(paths: Sequence[str]) -> FileSource:
    """Opens images to predict: label −1, no classes.

    Args:
      paths: files, kept whatever they are called and whether or not they exist; folders, of which
        every image at any depth is taken; patterns (`*.png`, `**/*.jpg`). In this order; what a
        folder or pattern gives is sorted.

    Raises:
      UserError: a folder or pattern without images.
    """
    found = [image for path in paths for image in files_lib.expand(path)]
    if not found:
        raise UserError('no images were given')
    return FileSource('files', (), tuple(found), np.full(len(found), -1, np.int32))


def split_folders(root: str) -> dict[str, str]:
    """The split folders that are there: {'validation': 'val', …}; none if these are classes.

    One folder called `test` among classes is a class; two of the three are splits.
    """
    names = files_lib.subfolders(root)
    every = {s: preferred(n for n in names if split_named(n) == s) for s in SPLITS}
    own = {split: found[0] for split, found in every.items() if found}
    if len(own) < 2 and not list(own.values()) == names == every['train'][:1]:
        if 'train' in own and files_lib.subfolders(os.path.join(root, own['train'])):
            warn_once(
                f'{root}: {own["train"]} is taken for a class, as there is no folder val or test beside it'
            )
        return {}
    for split, found in every.items():
        if len(found) > 1:
            warn_once(f'{root} has {" and ".join(found)}: {found[0]} is the {split} split')
    if unused := [name for name in names if split_named(name) is None]:
        warn_once(f'{root}: passed over beside the splits: {some_of(unused)}')
    return own


_listing: dict[str, tuple[dict[str, int], Any]] = {}  # the last folder that was listed, by its path


def _classes(root: str, rules: int) -> tuple[str, ...]:
    """The names of the class folders, in the order of the labels."""
    classes = in_order(files_lib.subfolders(root), rules)
    if not classes:
        raise UserError(f'{root}: there is no folder in it; each class has a folder of its own')
    for name in classes:
        if not files_lib.is_utf8(name):
            raise UserError(
                f'{root}: the name of the class folder {os.fsencode(name)!r} is not UTF-8; rename it'
            )
    return classes


def _labelled(root: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """All images of these classes: (path relative to root, label), sorted by path."""
    index = {name: label for label, name in enumerate(classes)}
    found, beside = [], 0
    for path in _list(root):
        name, inside, _ = path.partition('/')
        if inside:
            found.append((path, index[name]))
        else:
            beside += 1
    if beside:
        warn_once(f'{root}: {beside:,} images are passed over, as they are in no class folder')
    if empty := set(index.values()).difference(label for _, label in found):
        raise UserError(f'{os.path.join(root, classes[min(empty)])}: the class has no images')
    return found


def _list(root: str) -> list[str]:
    """The images below a folder; listed once for all splits while no folder in it has changed."""
    known = _listing.get(root)
    if known and all(_modified(folder) == when for folder, when in known[0].items()):
        return known[1]
    begin = time.time_ns()
    listing = files_lib.list_folder(root)
    files_lib.tell_passed(root, listing.passed)
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
    """One split of a folder that has some splits as folders."""
    for given, keys in (('validation', ['validation']), ('test', ['test', 'fold'])):
        if given in own:
            shares.refuse(f'{root} has the folder {own[given]}', *keys)
    classes = _classes(os.path.join(root, own['train']), shares.rules)
    asked = shares.given['test'] is not None or shares.given['fold'] is not None
    if 'test' not in own and 'validation' in own and not asked:
        own = own | {'test': own['validation']}
    if split in own and split != 'train':
        images = _of_split(root, own[split], classes)
        return source_of(f'{root}:{split}', classes, _placed(root, images))
    images = _of_split(root, own['train'], classes)
    made = [other for other in ('validation', 'test') if other not in own]
    parts = shares.parts(images, made)
    return shares.choose(root, split, classes, _placed(root, images), parts)


def _placed(root: str, images: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The images with their whole paths."""
    below = os.path.join(root, '')
    return [(below + path, label) for path, label in images]


def _of_split(root: str, name: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    here = os.path.join(root, name)
    there = set(files_lib.subfolders(here))
    if surplus := sorted(there.difference(classes)):
        raise UserError(f'{here}: class {surplus[0]!r} is not among those of train')
    if missing := [name for name in classes if name not in there]:
        raise UserError(f'{here}: class {missing[0]!r} has no folder')
    return [(f'{name}/{path}', label) for path, label in _labelled(here, classes)]
