"""Survey of all faults of a folder or list of images. A source stops at the first fault."""

import os
from collections.abc import Mapping
from typing import Any

from vision.core.errors import UserError
from vision.data import files
from vision.data.file_list import read_list, unknown_split
from vision.data.folder import split_folders
from vision.data.shares import source_of, split_named
from vision.data.source import FileSource, Source

_SHOWN = 20  # largest number of faults of a list file that are returned


def survey(settings: Mapping[str, Any]) -> tuple[dict[str, Source], list[str]]:
    """Lists the faults for which a source would refuse the data, and opens the data despite them.

    Args:
      settings: `config.data` with the source `folder` or `list`; other sources give no result.

    Returns:
      The source of each split, and the faults, one line each. If hashes of the paths determine the
      splits, the only split is 'images'. There are no sources if nothing can be opened.
    """
    given = settings.get('path')
    # For other sources, and for paths that are not set or do not exist, the message of the source
    # itself suffices.
    if not given:
        return {}, []
    path = os.path.abspath(os.path.expanduser(given))
    if settings['source'] == 'folder' and os.path.isdir(path):
        return _survey_folder(path)
    if settings['source'] == 'list' and os.path.isfile(path):
        return _survey_list(given, os.path.dirname(path))
    return {}, []


def _survey_folder(root: str) -> tuple[dict[str, Source], list[str]]:
    """Surveys a folder with a folder for each class, or for each split and class."""
    # If there are no folders of splits, the folders of the classes are in the root itself.
    own = split_folders(root) or {'images': ''}
    # List the images of each split and class.
    found: dict[str, dict[str, list[str]]] = {}
    faults = []
    for split, name in own.items():
        at = os.path.join(root, name) if name else root
        found[split] = {}
        for class_name in files.subfolders(at):
            try:
                below = files.images_below(here := os.path.join(at, class_name))
            except UserError as e:
                below = []
                faults.append(str(e))
            else:
                if not below:
                    faults.append(f'{here}: the class has no images')
            found[split][class_name] = [os.path.join(here, name) for name in below]
        if not found[split]:
            faults.append(f'{at} has no subfolders; put the images of each class in a subfolder')
    if 'train' not in found and 'images' not in found:
        faults.append(f'{root} has {", ".join(sorted(own.values()))} but no folder train')
    # All splits must have the classes of the first one.
    first = next(iter(found.values()))
    for split, classes in found.items():
        at = os.path.join(root, own[split])
        faults += [
            f'{at}: class {c!r} is not among the classes of train'
            for c in classes
            if c not in first
        ]
        faults += [f'{at}: class {c!r} has no folder' for c in first if c not in classes]
    names = tuple(dict.fromkeys(c for classes in found.values() for c in classes))
    return {
        split: source
        for split, classes in found.items()
        if (source := _source(f'{root}:{split}', names, classes)) is not None
    }, faults


def _survey_list(path: str, base: str) -> tuple[dict[str, Source], list[str]]:
    """Surveys a list file whose paths are relative to the folder `base`."""
    try:
        rows = read_list(path)
    except UserError as e:
        return {}, [str(e)]
    # Collect the images of the complete rows, and the faults of the others.
    faults, classes = [], dict[str, list[str]]()
    for number, row in enumerate(rows, 1):
        lacking = [key for key in ('path', 'label') if not row.get(key)]
        faults += [
            f'{path}: image {number} has no {key!r}; expected path and label' for key in lacking
        ]
        split = str(row.get('split') or 'train')
        if split_named(split) is None:
            faults.append(unknown_split(path, number, split))
        if not lacking:
            path_of = os.path.join(base, str(row['path']))
            classes.setdefault(str(row['label']), []).append(path_of)
    source = _source(path, tuple(classes), classes)
    more = [f'… and {len(faults) - _SHOWN} more faults'] if len(faults) > _SHOWN else []
    return ({} if source is None else {'images': source}), faults[:_SHOWN] + more


def _source(
    name: str, class_names: tuple[str, ...], classes: Mapping[str, list[str]]
) -> FileSource | None:
    """Returns a source of the images of all classes, or None if there are no images."""
    index = {c: label for label, c in enumerate(class_names)}
    images = [(path, index[c]) for c, paths in classes.items() for path in paths]
    return source_of(name, class_names, images) if images else None
