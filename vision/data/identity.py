"""Record of a run's data, which is compared when the run is resumed or evaluated.

`dataset.json` in the workdir has a digest of each split. `examples.json.gz` has the examples that
the digests are computed from; it is read only to describe a change (`vision.data.changes`).
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision.core import workdir as workdir_lib
from vision.core.errors import UserError
from vision.core.text import json_text
from vision.data.source import Source

Examples = list[tuple[str, str]]

FILE = 'examples.json.gz'


def examples_of(sources: Mapping[str, Source]) -> dict[str, Examples]:
    """Lists the names and marks of each split's examples (`Source.identities`)."""
    return {split: list(source.identities()) for split, source in sources.items()}


def digest(examples: Iterable[tuple[str, str]]) -> str:
    """Returns the digest of a split's examples, 32 hexadecimal digits."""
    text = '\0'.join(part for example in examples for part in example)
    return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()


def record(workdir: Path, about: Mapping[str, Any], examples: Mapping[str, Examples]) -> None:
    """Writes `dataset.json` and `examples.json.gz`, unless the run has them.

    Args:
      workdir: the run's folder.
      about: JSON values that prediction needs, such as the class names.
      examples: the examples of each split.
    """
    if (workdir / 'dataset.json').exists():
        return
    # `dataset.json` is written last: its presence shows that the record is complete.
    packed = gzip.compress(json.dumps(examples).encode(), compresslevel=3, mtime=0)
    workdir_lib.write_bytes(workdir / FILE, packed)
    about = {**about, 'identity': {split: digest(found) for split, found in examples.items()}}
    text = json_text(about, indent=2, ensure_ascii=False) + '\n'
    workdir_lib.write_text(workdir / 'dataset.json', text)


def check_unchanged(
    workdir: Path, about: Mapping[str, Any], examples: Mapping[str, Examples], advice: str
) -> None:
    """Compares the present data with the data that a run was trained on.

    Entries that runs of older versions did not record are not compared.

    Args:
      workdir: the run's folder; without `dataset.json` nothing is compared.
      about: entries of `dataset.json` for the present data.
      examples: present examples of the splits to compare.
      advice: the end of the message, which tells the user what to do.

    Raises:
      UserError: the data have changed; describes the difference.
    """
    if not (workdir / 'dataset.json').exists():
        return
    from vision.data.changes import difference

    if differs := difference(workdir, about, examples):
        raise UserError(f'{workdir} was trained on other data: {differs}. {advice}')
