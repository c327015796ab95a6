"""All that is wrong with a folder or list of images, at once: a source stops at the first of it."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.text import read_rows
from vision.data import files
from vision.data import folder as folders
from vision.data.source import FileSource, Source

_SHOWN = 20  # faults of one kind that are named


def survey(settings: Mapping[str, Any]) -> tuple[dict[str, Source], list[str]]:
    """Collects what a source of files would refuse, and opens what is there all the same.

    Args:
      settings: `config.data`, of the source `folder` or `list`.

    Returns:
      Sources of the images that are there, by split (or as 'images', where a hash decides the split), and
      the faults, a line each. No sources where nothing can be opened.
    """
    path = os.path.abspath(os.path.expanduser(settings.get('path') or ''))
    if settings['source'] == 'folder' and os.path.isdir(path):
        return _survey_folder(path)
    if settings['source'] == 'list' and os.path.isfile(path):
        return _survey_list(path)
    return {}, []


def _survey_folder(root: str) -> tuple[dict[str, Source], list[str]]:
    own = folders._split_folders(root) or {'images': ''}
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    faults = []
    for split, name in own.items():
        at = os.path.join(root, name) if name else root
        found[split] = {}
        for class_name in files.subfolders(at):
            try:
                found[split][class_name] = folders.files([os.path.join(at, class_name)]).paths
            except UserError as e:
                found[split][class_name] = ()
                empty = 'has no images' in str(e)
                faults.append(
                    f'{os.path.join(at, class_name)}: the class has no images' if empty else str(e)
                )
        if not found[split]:
            faults.append(f'{at}: there is no folder in it; each class has a folder of its own')
    if 'train' not in found and 'images' not in found:
        faults.append(f'{root} has {", ".join(sorted(own.values()))} but no folder train')
    first = next(iter(found.values()))
    for split, classes in found.items():
        at = os.path.join(root, own[split])
        faults += [
            f'{at}: class {c!r} is not among those of train' for c in classes if c not in first
        ]
        faults += [f'{at}: class {c!r} has no folder' for c in first if c not in classes]
    names = tuple(dict.fromkeys(c for classes in found.values() for c in classes))
    return {
        split: source
        for split, classes in found.items()
        if (source := _source(f'{root}:{split}', names, classes)) is not None
    }, faults


def _survey_list(path: str) -> tuple[dict[str, Source], list[str]]:
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            is_json = folders._is_json(path)
            rows = folders._read_json_lines(file, path) if is_json else read_rows(file, path)
    except (UserError, UnicodeDecodeError) as e:
        return {}, [str(e)]
    base, faults = os.path.dirname(path), []
    classes: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(rows, 1):
        lacking = [key for key in ('path', 'label') if not row.get(key)]
        faults += [
            f'{path}: image {number} has no {key!r}; expected path and label' for key in lacking
        ]
        split = str(row.get('split') or 'train')
        if not any(split.lower() in aliases for aliases in folders._ALIASES.values()):
            faults.append(
                f'{path}: image {number} has the unknown split {split!r}; it is train, val or test'
            )
        if not lacking:
            label = str(row['label'])
            classes[label] = (*classes.get(label, ()), os.path.join(base, str(row['path'])))
    source = _source(path, tuple(classes), classes)
    more = [f'… and {len(faults) - _SHOWN} more faults'] if len(faults) > _SHOWN else []
    return ({} if source is None else {'images': source}), faults[:_SHOWN] + more


def _source(
    name: str, class_names: tuple[str, ...], classes: Mapping[str, tuple[str, ...]]
) -> FileSource | None:
    """The images of some classes, whatever others are empty; None if there are none."""
    labelled = [(path, class_names.index(c)) for c, paths in classes.items() for path in paths]
    if not labelled:
        return None
    paths, labels = zip(*labelled, strict=True)
    return FileSource(name, class_names, paths, np.array(labels, np.int32))
