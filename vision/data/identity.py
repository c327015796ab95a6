"""The data that a run was trained on, recorded once and compared whenever it goes on or is evaluated.

The workdir has a digest of each split in `dataset.json`, and in `examples.json.gz` what the digest is of, which is read
only to say what has changed (`vision.data.changes`).
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
    workdir_lib.write_bytes(workdir / FILE, packed)
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
    from vision.data.changes import difference

    if differs := difference(workdir, about, examples):
        raise UserError(f'{workdir} was trained on other data: {differs}. {advice}')
