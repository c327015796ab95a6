"""Source of image lists: CSV with the columns path and label, or JSON lines."""

import json
import os
from collections.abc import Iterator

import numpy as np

from vision.core.errors import UserError, similar
from vision.core.text import read_rows
from vision.data.files import is_path, is_utf8
from vision.data.shares import SPLITS, Share, Shares, check_split, in_order, split_named
from vision.data.source import FileSource, multi_hot


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
      split: train, validation or test, or 'all' for the images of all splits.
      path: a CSV file with a header `path,label`, or JSON lines `{"path": …, "label": …}`. Image
        paths are relative to the list's folder. Labels are class names. If a cell has several
        ('cat|dog'), the whole list is multi-label, and an empty cell is an image without labels.
        A column `split` names each image's split; without it, a hash of the path determines the
        split, as in `folder`.
      validation: as in `folder`, like the arguments below.
      test: share for the test split.
      fold: 'K/N'.
      rules: version of the rules.

    Raises:
      UserError: the list does not exist, a line cannot be read, a column is missing, or the split
        is empty.
    """
    check_split(split)
    if not path:
        raise UserError('data.path is not set; set it with --config.data.path=…')
    # Read and check the rows.
    rows = _read_list(path)
    if not rows:
        raise UserError(f'{path}: the list has no images')
    shares = Shares(validation, test, fold, rules)
    base = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    multi_label = any('|' in row['label'] for row in rows)
    for number, row in enumerate(rows, 1):
        if not row['label'] and not multi_label:
            raise UserError(f"{path}: image {number} has no 'label'; expected path and label")
    # Read the class names of each image.
    named = [_names(row['label']) if multi_label else [row['label']] for row in rows]
    # Number the classes, and replace the names by the numbers.
    classes = in_order({name for names in named for name in names}, rules, of_list=True)
    index = {name: label for label, name in enumerate(classes)}
    found = [[index[name] for name in names] for names in named]
    labels = multi_hot(found, len(classes)) if multi_label else [label for (label,) in found]
    without = [number for number, row in enumerate(rows, 1) if 'split' not in row]
    if without and len(without) < len(rows):
        raise UserError(f"{path}: image {without[0]} has no 'split', but other images have one")
    # Split the images by the column `split`, or by hashes of the paths. Version 1 of the rules
    # hashes a path in the form in the list, version 2 hashes the normalised path.
    as_hashed = os.path.normpath if rules > 1 else str
    paths = [as_hashed(row['path']) for row in rows]
    images = list(zip(paths, labels, strict=True))
    if without:
        parts = shares.parts(images)
    else:
        shares.refuse(f'{path} has a column split', 'validation', 'test', 'fold')
        splits = [split_named(row['split']) for row in rows]
        if None in splits:
            number = splits.index(None) + 1
            raise UserError(unknown_split(path, number, rows[number - 1]['split']))
        parts = np.array([SPLITS.index(split) for split in splits if split], np.int8)
    # Make the paths absolute.
    placed = [(os.path.normpath(os.path.join(base, name)), label) for name, label in images]
    return shares.choose(path, split, classes, placed, parts)


def _names(cell: str) -> list[str]:
    """Returns the class names in a cell of a multi-label list."""
    return [name.strip() for name in cell.split('|') if name.strip()]


def unknown_split(path: str, number: int, text: str) -> str:
    """Returns the message for a cell with an unknown split."""
    return f'{path}: image {number} has the unknown split {text!r}; use train, val or test'


def _read_list(path: str) -> list[dict[str, str]]:
    """Reads a list, checks that each row has a valid path and label, and returns text cells."""
    rows = read_list(path)
    for number, row in enumerate(rows, 1):
        # A label may be empty, which means none in a multi-label list.
        for key, none in (('path', (None, '')), ('label', (None,))):
            if row.get(key) in none:
                found = '' if key in row else f', not {", ".join(map(repr, row))}'
                raise UserError(
                    f'{path}: image {number} has no {key!r}; expected path and label{found:.200}'
                )
            # pandas writes a missing label as NaN.
            if not isinstance(row[key], str | int | float) or row[key] != row[key]:
                raise UserError(
                    f'{path}: the {key} of image {number} is {row[key]!r:.80}; expected text'
                )
        if not is_path(str(row['path'])):
            raise UserError(f'{path}: image {number}: {row["path"]!r} is not a valid path')
        if '://' in str(row['path']):
            raise UserError(f'{path}: image {number} is a URL; give the path of a file')
        if not is_utf8(str(row['label']) or ' '):
            raise UserError(f'{path}: the label of image {number}, {row["label"]!r}, is not UTF-8')
    return [{k: str(v) for k, v in row.items() if v is not None} for row in rows]


def read_list(path: str) -> list[dict]:
    """Returns the unchecked rows of a list as dicts; raises UserError if it cannot be read."""
    full = os.path.expanduser(path)
    if not os.path.isfile(full):
        raise UserError(f'data.path={path!r}: no such file{similar(path)}')
    # The suffix distinguishes JSON lines from CSV.
    is_json = full.lower().endswith(('.jsonl', '.json', '.ndjson'))
    try:
        with open(full, newline='', encoding='utf-8-sig') as file:
            if is_json:
                return _read_json_lines(file, path)
            return read_rows(file, path, once=('path', 'label', 'split'))
    except UnicodeDecodeError as e:
        raise UserError(f'{path}: not a list of images ({e})') from None
    except OSError as e:
        raise UserError(f'{path} cannot be read: {e.strerror}') from None


def _read_json_lines(lines: Iterator[str], path: str) -> list[dict]:
    """Parses one JSON object per line and skips blank lines."""
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise UserError(f'{path}, line {number}: not JSON ({e})') from None
        # Every line must be an object.
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: expected {{"path": …, "label": …}}')
        rows.append(row)
    return rows
