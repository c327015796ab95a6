"""Image files: folders with a subfolder per class, lists of `path,label`, and files to predict."""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision.core.errors import UserError, unknown
from vision.core.text import read_rows
from vision.data import files as files_lib
from vision.data.shares import SPLITS, Share, Shares, in_order
from vision.data.source import FileSource, NoSplitError, as_labels, multi_hot

_ALIASES = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid'),
    'test': ('test',),
}
_AT_REST = 2_000_000_000  # nanoseconds after which a folder's modification time tells of any change
_NAMED = 5  # classes that a message names


def folder(
    split: str,
    path: str | None,
    validation: Share = None,
    test: Share = None,
    fold: str | None = None,
    rules: int = 2,
) -> FileSource:
    """Opens one split of a folder of images.

    Either `path/CLASS/…/image` or `path/SPLIT/CLASS/…/image`, where SPLIT is train, val (valid,
    validation) or test. In the first case each class is split by the rank of a hash of its images'
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
    _check_split(split)
    if not path:
        raise UserError('data.path is not set; name it with --config.data.path=…')
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
        raise UserError(f'data.path={path!r}: no such folder')
    shares = Shares(validation, test, fold, rules)
    own = _split_folders(root)
    if not own:
        classes = _classes(root, rules)
        images = _labelled(root, classes)
        return _choose(root, split, classes, _placed(root, images), shares.parts(images), shares)
    if 'train' not in own:
        raise UserError(f'{root} has {", ".join(sorted(own.values()))} but no folder train')
    return _given_split(root, split, own, shares)


def file_list(
    split: str,
    path: str | None,
    validation: Share = None,
    test: Share = None,
    fold: str | None = None,
    rules: int = 2,
) -> FileSource:
    """Opens one split of a list of images.

    Args:
      split: train, validation or test.
      path: of a CSV with a header `path,label` or of JSON lines `{"path": …, "label": …}`; image
        paths are relative to the list's folder. A column `split` decides the split if there is
        one, else a hash of each path, as for `folder`. Labels are the classes' names. Where a cell
        has several, 'cat|dog', the whole list is multi-label, and an empty cell is an image without
        any.
      validation: as for `folder`, like the following.
      test: share for the test split.
      fold: 'K/N'.
      rules: version of the rules.

    Raises:
      UserError: no such list, a line that cannot be read, a missing column, an empty split.
    """
    _check_split(split)
    if not path:
        raise UserError('data.path is not set; name it with --config.data.path=…')
    rows = _read_list(path)
    if not rows:
        raise UserError(f'{path}: the list has no images')
    shares = Shares(validation, test, fold, rules)
    base = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    multi_label = any('|' in row['label'] for row in rows)
    for number, row in enumerate(rows, 1):
        if not row['label'] and not multi_label:
            raise UserError(f"{path}: image {number} has no 'label'; expected path and label")
    named = [_names(row['label']) if multi_label else [row['label']] for row in rows]
    classes = in_order({name for names in named for name in names}, rules, of_list=True)
    index = {name: label for label, name in enumerate(classes)}
    found = [[index[name] for name in names] for names in named]
    labels = multi_hot(found, len(classes)) if multi_label else [label for (label,) in found]
    without = [number for number, row in enumerate(rows, 1) if 'split' not in row]
    if without and len(without) < len(rows):
        raise UserError(f"{path}: image {without[0]} has no 'split', which others have")
    as_hashed = os.path.normpath if rules > 1 else str
    paths = [as_hashed(row['path']) for row in rows]
    images = list(zip(paths, labels, strict=True))
    if without:
        parts = shares.parts(images)
    else:
        shares.refuse(f'{path} has a column split', 'validation', 'test', 'fold')
        parts = np.array([SPLITS.index(_canonical(row['split'], path)) for row in rows], np.int8)
    placed = [(os.path.normpath(os.path.join(base, name)), label) for name, label in images]
    return _choose(path, split, classes, placed, parts, shares)


def _names(cell: str) -> list[str]:
    """The classes in a cell of a multi-label list."""
    return [name.strip() for name in cell.split('|') if name.strip()]


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


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise unknown('split', split, SPLITS)


def _split_folders(root: str) -> dict[str, str]:
    """The split folders that are there: {'validation': 'val', …}; none if these are classes.

    One folder called `test` among classes is a class; two of the three are splits.
    """
    names = files_lib.subfolders(root)
    every = {s: [n for a in _ALIASES[s] for n in names if n.lower() == a] for s in SPLITS}
    own = {split: found[0] for split, found in every.items() if found}
    if len(own) < 2 and not list(own.values()) == names == every['train'][:1]:
        return {}
    for split, found in every.items():
        if len(found) > 1:
            _warn(f'{root} has {" and ".join(found)}: {found[0]} is the {split} split')
    if unused := [n for n in names if not any(n in found for found in every.values())]:
        _warn(f'{root}: passed over beside the splits: {_some(unused)}')
    return own


_said = set[str]()


def _warn(message: str) -> None:
    """Warns once: each split of a folder is opened by itself."""
    if message not in _said:
        _said.add(message)
        logging.warning('%s', message)


def _some(names: Sequence[str]) -> str:
    more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(map(repr, names[:_NAMED])) + more


_listing: dict[str, tuple[dict[str, int], Any]] = {}  # the last folder that was listed, by its path


def _classes(root: str, rules: int) -> tuple[str, ...]:
    """The names of the class folders, in the order of the labels."""
    classes = in_order(files_lib.subfolders(root), rules)
    if not classes:
        raise UserError(f'{root}: there is no folder in it; each class has a folder of its own')
    for name in classes:
        if not _is_utf8(name):
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
        _warn(f'{root}: {beside:,} images are passed over, as they are in no class folder')
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


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


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
        return _source(f'{root}:{split}', classes, _placed(root, images))
    images = _of_split(root, own['train'], classes)
    made = [other for other in ('validation', 'test') if other not in own]
    parts = shares.parts(images, made)
    return _choose(root, split, classes, _placed(root, images), parts, shares)


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


def _choose(
    name: str,
    split: str,
    classes: tuple[str, ...],
    images: Sequence[tuple[str, Any]],
    parts: np.ndarray,
    shares: Shares,
) -> FileSource:
    """The images of a split; warns of classes that have none in it."""
    name = f'{name}:{split}'
    if shares.asks_for_none(split):
        raise NoSplitError(f'{name}: data.{split}={shares.given[split]}, so there is no such split')
    chosen = np.flatnonzero(parts == SPLITS.index(split)).tolist()
    source = _source(name, classes, [images[i] for i in chosen])
    labels = source.labels
    found = labels.sum(0) if source.multi_label else np.bincount(labels, minlength=len(classes))
    if without := [classes[i] for i in np.flatnonzero(found == 0)]:
        count = '1 class has' if len(without) == 1 else f'{len(without)} classes have'
        _warn(f'{name}: {count} no image in this split: {_some(without)}')
    return source


def _source(name: str, classes: tuple[str, ...], images: Sequence[tuple[str, Any]]) -> FileSource:
    if not images:
        raise UserError(f'{name}: the split has no examples')
    paths, labels = zip(*images, strict=True)
    return FileSource(name, classes, paths, as_labels(np.array(labels)))


def _canonical(split: str, path: str) -> str:
    for name, aliases in _ALIASES.items():
        if split.lower() in aliases:
            return name
    raise UserError(f'{path}: unknown split {split!r}; it is train, val or test')


def _read_list(path: str) -> list[dict[str, str]]:
    full = os.path.expanduser(path)
    if not os.path.isfile(full):
        raise UserError(f'data.path={path!r}: no such file')
    with open(full, newline='', encoding='utf-8-sig') as file:
        try:
            rows = _read_json_lines(file, path) if _is_json(full) else read_rows(file, path)
        except UnicodeDecodeError as e:
            raise UserError(f'{path}: not a list of images ({e})') from None
    for number, row in enumerate(rows, 1):
        for key, none in (('path', (None, '')), ('label', (None,))):
            if row.get(key) in none:
                raise UserError(f'{path}: image {number} has no {key!r}; expected path and label')
        if not files_lib.is_path(str(row['path'])):
            raise UserError(f'{path}: the path of image {number}, {row["path"]!r}, is none')
        if not _is_utf8(str(row['label']) or ' '):
            raise UserError(f'{path}: the label of image {number}, {row["label"]!r}, is not UTF-8')
    return [{k: str(v) for k, v in row.items() if v is not None} for row in rows]


def _is_json(path: str) -> bool:
    return path.lower().endswith(('.jsonl', '.json', '.ndjson'))


def _read_json_lines(lines: Iterator[str], path: str) -> list[dict]:
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise UserError(f'{path}, line {number}: not JSON ({e})') from None
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: expected {{"path": …, "label": …}}')
        rows.append(row)
    return rows
