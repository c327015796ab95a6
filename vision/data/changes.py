"""Description of how a run's data have changed since they were recorded."""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision.core import workdir as workdir_lib
from vision.data.files import in_system_folder
from vision.data.identity import FILE, Examples, digest

# Keys of dataset.json that are compared in addition to the classes and the examples, and their
# messages.
_COMPARED = {
    'image_shape': 'the images are {now}; they were {was}',
    'input_shape': 'the model input is {now}; it was {was}',
    'rules': 'the rules for order and splits have version {now}; they had version {was}',
}


def difference(
    workdir: Path, about: Mapping[str, Any], examples: Mapping[str, Examples]
) -> str | None:
    """Describes the first difference between the present data and the data that a run recorded.

    Args:
      workdir: the run's folder.
      about: entries of `dataset.json` for the present data.
      examples: present examples of the splits to compare.

    Returns:
      A phrase, or None if nothing differs.
    """
    recorded = workdir_lib.read_json(workdir, 'dataset.json')
    if differs := _classes(recorded['class_names'], about.get('class_names')):
        return differs
    # Compare single entries of dataset.json, then the examples of each split.
    for key, text in _COMPARED.items():
        if key in recorded and key in about and recorded[key] != about[key]:
            return text.format(was=recorded[key], now=about[key])
    for split, found in examples.items():
        if differs := _split(workdir, recorded, split, found):
            return differs
    # A recorded split may be absent now.
    kept = about.get('num_examples')
    gone = [s for s in recorded.get('num_examples', ()) if kept is not None and s not in kept]
    return f'there is no {gone[0]} split any more' if gone else None


def _classes(was: list[str], now: list[str] | None) -> str | None:
    """Describes how the class names differ, or returns None."""
    if now is None or list(now) == was:
        return None
    # Name the first lost and the first new class.
    gone, new = ([n for n in a if n not in b] for a, b in ((was, now), (now, was)))
    parts = [
        f'{what} {names[0]!r}' + (f' and {len(names) - 1} more' if len(names) > 1 else '')
        for what, names in (('lost the class', gone), ('have the new class', new))
        if names
    ]
    return f'they {" and ".join(parts) or "have the classes in another order"}{_hint(gone)}'


def _split(workdir: Path, recorded: Mapping[str, Any], split: str, now: Examples) -> str | None:
    """Describes how a split differs from its record, or returns None."""
    # Compare digests first; runs of older versions recorded only the number of examples.
    counts, digests = recorded.get('num_examples', {}), recorded.get('identity', {})
    if counts and split not in counts:
        return f'there was no {split} split'
    if split in digests and digests[split] == digest(now):
        return None
    # The digests differ: find out what has changed.
    before = _recorded_examples(workdir).get(split) if split in digests else None
    if before is None:
        if split not in digests and counts.get(split, len(now)) == len(now):
            return None
        return f'{split} had {counts.get(split):,} examples and has {len(now):,}'
    # List removed, new and changed examples.
    were, are = dict(before), dict(now)
    changes = {
        'gone': [name for name in were if name not in are],
        'new': [name for name in are if name not in were],
        'changed': [name for name in are if name in were and are[name] != were[name]],
    }
    parts = [
        f'{len(names):,} {"is" if len(names) == 1 else "are"} {what}, the first is {names[0]!r}'
        for what, names in changes.items()
        if names
    ]
    count = f'{split} had {len(before):,} examples and has {len(now):,}'
    said = '; '.join(parts) or 'they come in another order'
    return f'{count}; {said}{_hint(changes["gone"])}'


def _hint(gone: Iterable[str]) -> str:
    """Returns advice if classes or images are gone that only older versions read; '' otherwise."""
    if not any(map(in_system_folder, gone)):
        return ''
    return '; folders such as @eaDir are no longer read: train again in another workdir'


def _recorded_examples(workdir: Path) -> dict[str, Examples]:
    """Reads the recorded examples of each split; {} if the file is missing or damaged."""
    try:
        with gzip.open(workdir / FILE) as file:
            found = json.load(file)
        return {s: [(str(name), str(mark)) for name, mark in pairs] for s, pairs in found.items()}
    except (OSError, EOFError, ValueError, TypeError, AttributeError, RecursionError, zlib.error):
        return {}
