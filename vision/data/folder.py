"""Image files: folders with a subfolder per class, lists of `path,label`, and files to predict."""

import glob as globbing
import json
import os
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from vision.core.errors import UserError, unknown
from vision.core.tables import read_rows
from vision.data.order import hash64
from vision.data.source import FileSource, as_labels, multi_hot

ENDINGS = ('.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.jfif',
           '.ppm', '.pgm', '.pbm', '.pnm')  # fmt: skip
SPLITS = ('train', 'validation', 'test')
_ALIASES = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid'),
    'test': ('test',),
}
_HELD_OUT = 0.1  # of each class, for validation and for test, where the folder has no splits


def folder(split: str, path: str | None) -> FileSource:
    """Opens one split of a folder of images.

    Either `path/CLASS/…/image` or `path/SPLIT/CLASS/…/image`, where SPLIT is train, val (valid,
    validation) or test. In the first case a hash of each image's path below `path` decides:
    8/10 train, 1/10 validation, 1/10 test. Adding or removing a file moves no other. If a folder
    has train and test but no val, 1/10 of train is validation; with train and val but no test, val
    is both: ImageNet's own test labels are not public.

    Args:
      split: train, validation or test.
      path: of the folder. Hidden files and what has no image's ending are passed over.

    Raises:
      UserError: no such folder, no images, a class without images, or an empty split.
    """
    _check_split(split)
    if not path:
        raise UserError('data.path is not set; name it with --config.data.path=…')
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
        raise UserError(f'data.path={path!r}: no such folder')
    own = _split_folders(root)
    if not own:
        return _hashed_split(root, split)
    if 'train' not in own:
        raise UserError(f'{root} has {", ".join(sorted(own.values()))} but no folder train')
    return _given_split(root, split, own)


def file_list(split: str, path: str | None) -> FileSource:
    """Opens one split of a list of images.

    Args:
      split: train, validation or test.
      path: of a CSV with a header `path,label` or of JSON lines `{"path": …, "label": …}`; image
        paths are relative to the list's folder. A column `split` decides the split if there is
        one, else a hash of each path, as for `folder`. Labels are the classes' names. Where a cell
        has several, 'cat|dog', the whole list is multi-label, and an empty cell is an image without
        any.

    Raises:
      UserError: no such list, a line that cannot be read, a missing column, an empty split.
    """
    _check_split(split)
    if not path:
        raise UserError('data.path is not set; name it with --config.data.path=…')
    rows = _read_list(path)
    if not rows:
        raise UserError(f'{path}: the list has no images')
    base = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    multi_label = any('|' in row['label'] for row in rows)
    for number, row in enumerate(rows, 1):
        if not row['label'] and not multi_label:
            raise UserError(f"{path}: image {number} has no 'label'; expected path and label")
    named = [_names(row['label']) if multi_label else [row['label']] for row in rows]
    classes = tuple(sorted({name for names in named for name in names}, key=_natural))
    without = [number for number, row in enumerate(rows, 1) if 'split' not in row]
    if without and len(without) < len(rows):
        raise UserError(f"{path}: image {without[0]} has no 'split', which others have")
    if not without:
        parts = [_canonical(row['split'], path) for row in rows]
    else:
        parts = _hash_parts([row['path'] for row in rows])
    chosen = [i for i, part in enumerate(parts) if part == split]
    paths = [os.path.normpath(os.path.join(base, rows[i]['path'])) for i in chosen]
    index = {name: label for label, name in enumerate(classes)}
    found = [[index[name] for name in named[i]] for i in chosen]
    labels = multi_hot(found, len(classes)) if multi_label else [label for (label,) in found]
    return _source(f'{path}:{split}', classes, paths, labels)


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
    found: list[str] = []
    for path in paths:
        found += _expand(os.path.expanduser(path))
    if not found:
        raise UserError('no images were given')
    return FileSource('files', (), tuple(found), np.full(len(found), -1, np.int32))


def _expand(path: str) -> list[str]:
    if os.path.isdir(path):
        below = [os.path.join(path, name) for name in sorted(_images_below(path))]
        if not below:
            raise UserError(f'{path}: the folder has no images ({", ".join(ENDINGS)})')
        return below
    if os.path.exists(path) or not globbing.has_magic(path):
        return [path]
    matches = sorted(p for p in globbing.glob(path, recursive=True) if _is_image(p))
    if not matches:
        raise UserError(f'{path}: no images match')
    return [p for p in matches if os.path.isfile(p)]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise unknown('split', split, SPLITS)


def _is_image(name: str) -> bool:
    name = os.path.basename(name)
    return not name.startswith('.') and name.lower().endswith(ENDINGS)


def _images_below(root: str) -> Iterator[str]:
    """Yields the images below a folder, as paths relative to it with '/' between the parts.

    A folder that several links lead to is walked once, by its own path if that is below the root.
    """
    seen, waiting, links = set[str](), [''], list[str]()
    while waiting or links:
        prefix = waiting.pop() if waiting else links.pop(0)
        folder = os.path.join(root, prefix)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for entry in sorted(_entries(folder), key=lambda entry: entry.name):
            name = f'{prefix}/{entry.name}' if prefix else entry.name
            if entry.is_dir():
                (links if entry.is_symlink() else waiting).append(name)
            elif _is_image(entry.name):
                yield name


def _subfolders(root: str) -> list[str]:
    return sorted(entry.name for entry in _entries(root) if entry.is_dir())


def _entries(folder: str) -> Iterator[os.DirEntry]:
    """What a folder holds, but for what is hidden and for links back to where one came from."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                hidden = entry.name.startswith('.')
                if not hidden and not (entry.is_symlink() and _leads_back(entry.path, folder)):
                    yield entry
    except OSError as e:
        raise UserError(f'{folder} cannot be read: {e.strerror}') from None


def _leads_back(link: str, folder: str) -> bool:
    target, here = os.path.realpath(link), os.path.realpath(folder)
    return here == target or here.startswith(target.rstrip(os.sep) + os.sep)


def _split_folders(root: str) -> dict[str, str]:
    """The split folders that are there: {'validation': 'val', …}; none if these are classes.

    One folder called `test` among classes is a class; two of the three are splits.
    """
    names = _subfolders(root)
    own = {s: n for s in SPLITS for n in names if n.lower() in _ALIASES[s]}
    return own if len(own) >= 2 or list(own) == names == ['train'] else {}


def _classes(root: str) -> tuple[str, ...]:
    classes = tuple(_subfolders(root))
    if not classes:
        raise UserError(f'{root}: there is no folder in it; each class has a folder of its own')
    return classes


def _labelled(root: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """All images of these classes: (path relative to root, label), sorted by path."""
    found = []
    for label, name in enumerate(classes):
        images = [(f'{name}/{image}', label) for image in _images_below(os.path.join(root, name))]
        if not images:
            raise UserError(f'{os.path.join(root, name)}: the class has no images')
        found += images
    return sorted(found)


def _hashed_split(root: str, split: str) -> FileSource:
    classes = _classes(root)
    images = _labelled(root, classes)
    parts = _hash_parts([path for path, _ in images])
    chosen = [image for image, part in zip(images, parts, strict=True) if part == split]
    return _from_relative(root, split, classes, chosen)


def _given_split(root: str, split: str, own: dict[str, str]) -> FileSource:
    train = os.path.join(root, own['train'])
    classes = _classes(train)
    if split in own and split != 'train':
        return _from_relative(root, split, classes, _of_split(root, own[split], classes))
    if split == 'test':
        return _from_relative(root, split, classes, _of_split(root, own['validation'], classes))
    images = _of_split(root, own['train'], classes)
    if 'validation' not in own:
        held_out = [part == 'validation' for part in _hash_parts([p for p, _ in images])]
        wanted = split == 'validation'
        images = [image for image, out in zip(images, held_out, strict=True) if out == wanted]
    return _from_relative(root, split, classes, images)


def _of_split(root: str, name: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    here = os.path.join(root, name)
    surplus = sorted(set(_subfolders(here)) - set(classes))
    if surplus:
        raise UserError(f'{here}: class {surplus[0]!r} is not among those of train')
    present = [c for c in classes if os.path.isdir(os.path.join(here, c))]
    if len(present) < len(classes):
        missing = next(c for c in classes if c not in present)
        raise UserError(f'{here}: class {missing!r} has no folder')
    return [(f'{name}/{path}', label) for path, label in _labelled(here, classes)]


def _from_relative(
    root: str, split: str, classes: tuple[str, ...], images: list[tuple[str, int]]
) -> FileSource:
    paths = [os.path.join(root, path) for path, _ in images]
    return _source(f'{root}:{split}', classes, paths, [label for _, label in images])


def _source(
    name: str, classes: tuple[str, ...], paths: list[str], labels: list[int] | np.ndarray
) -> FileSource:
    if not paths:
        raise UserError(f'{name}: the split has no examples')
    return FileSource(name, classes, tuple(paths), as_labels(np.asarray(labels)))


def _hash_parts(paths: list[str]) -> list[str]:
    """The split of each path, by itself: the same whatever other files there are."""
    low, high = _HELD_OUT, 2 * _HELD_OUT
    names = np.array([_path_hash(path) for path in paths], np.uint64)
    fractions = (hash64(names) >> np.uint64(11)) * 2.0**-53
    return ['test' if f < low else 'validation' if f < high else 'train' for f in fractions]


def _path_hash(path: str) -> int:
    data = path.encode('utf-8', 'surrogateescape')
    return zlib.crc32(data) << 32 | zlib.adler32(data)


def _natural(label: str) -> tuple[bool, int, str]:
    """Sorts '10' after '9' where labels are numbers."""
    return (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)


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
