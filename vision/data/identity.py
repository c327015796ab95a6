"""What a run was trained on, recorded once and compared whenever it goes on or is evaluated.

The workdir has a digest of each split in `dataset.json`, and in `examples.json.gz` what the digest is of, which is read
only to say what has changed.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision.core import workdir as workdir_lib
from vision.core.errors import UserError
from vision.core.text import json_text
from vision.data.source import Source

Examples = list[tuple[str, str]]

_FILE = 'examples.json.gz'
_COMPARED = {
    'image_shape': 'the images are {now}; they were {was}',
    'input_shape': 'the model is fed {now}; it was fed {was}',
    'rules': 'version {now} of the rules for order and splits; it was version {was}',
}  # keys of dataset.json, beside the classes and the examples


def examples_of(sources: Mapping[str, Source]) -> dict[str, Examples]:
    """Lists the examples of each split, as `Source.identities` has them."""
    return {split: list(source.identities()) for split, source in sources.items()}


def digest(examples: Iterable[tuple[str, str]]) -> str:
    """Returns the digest of a split's examples: 32 hexadecimal digits."""
    text = '\0'.join(part for example in examples for part in example)
    return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()


def record(workdir: Path, about: Mapping[str, Any], examples: Mapping[str, Examples]) -> None:
    """Writes `dataset.json` and the examples that it is about, unless the run has them.

    Args:
      workdir: of the run.
      about: JSON, what prediction must know of the data.
      examples: by split.
    """
    if (workdir / 'dataset.json').exists():
        return
    packed = gzip.compress(json.dumps(examples).encode(), compresslevel=3, mtime=0)
    workdir_lib.write_bytes(workdir / _FILE, packed)
    about = {**about, 'identity': {split: digest(found) for split, found in examples.items()}}
    text = json_text(about, indent=2, ensure_ascii=False) + '\n'
    workdir_lib.write_text(workdir / 'dataset.json', text)


def check_unchanged(
    workdir: Path, about: Mapping[str, Any], examples: Mapping[str, Examples], advice: str
) -> None:
    """Compares data with those that a run was trained on; what older runs have not recorded is passed over.

    Args:
      workdir: of the run; without `dataset.json` there is nothing to compare.
      about: entries of `dataset.json`, of the data as they are.
      examples: of the splits that are compared.
      advice: what to do, for the message.

    Raises:
      UserError: the data have changed; names what differs.
    """
    if not (workdir / 'dataset.json').exists():
        return
    recorded = workdir_lib.read_json(workdir, 'dataset.json')
    differs = _classes(recorded['class_names'], about.get('class_names'))
    for key, text in _COMPARED.items():
        was, now = recorded.get(key), about.get(key)
        if not differs and key in recorded and key in about and was != now:
            differs = text.format(was=was, now=now)
    for split, found in examples.items():
        differs = differs or _split(workdir, recorded, split, found)
    if not differs:
        # Of a run that had a split which is gone.
        gone = [
            s for s in recorded.get('num_examples', ()) if s not in about.get('num_examples', (s,))
        ]
        differs = f'there is no {gone[0]} split any more' if gone else None
    if differs:
        raise UserError(f'{workdir} was trained on other data: {differs}. {advice}')


def _classes(was: list[str], now: list[str] | None) -> str | None:
    if now is None or list(now) == was:
        return None
    gone, new = ([n for n in a if n not in b] for a, b in ((was, now), (now, was)))
    parts = [
        f'{what} {names[0]!r}' + (f' and {len(names) - 1} more' if len(names) > 1 else '')
        for what, names in (('lost the class', gone), ('have the new class', new))
        if names
    ]
    return f'they {" and ".join(parts) or "have the classes in another order"}'


def _split(workdir: Path, recorded: Mapping[str, Any], split: str, now: Examples) -> str | None:
    """Says in what a split differs from what was recorded of it, or None."""
    counts, digests = recorded.get('num_examples', {}), recorded.get('identity', {})
    if counts and split not in counts:
        return f'there was no {split} split'
    if split in digests and digests[split] == digest(now):
        return None
    before = _recorded_examples(workdir).get(split) if split in digests else None
    if before is None:
        if split not in digests and counts.get(split, len(now)) == len(now):
            return None
        return f'{split} had {counts.get(split):,} examples and has {len(now):,}'
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
    return f'{count}; {"; ".join(parts) or "they come in another order"}'


def _recorded_examples(workdir: Path) -> dict[str, Examples]:
    try:
        with gzip.open(workdir / _FILE) as file:
            found = json.load(file)
        return {s: [(str(name), str(mark)) for name, mark in pairs] for s, pairs in found.items()}
    # Not there, or damaged.
    except (OSError, EOFError, ValueError, TypeError, AttributeError, RecursionError, zlib.error):
        return {}
