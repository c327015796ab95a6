"""Files with the right answers of a search: pairs of DISC21, and the Oxford and Paris benchmark."""

import csv
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vision.core.errors import UserError
from vision.core.text import AnyPath, as_path

_HEADER = ['query_id', 'reference_id']
_LEVELS = ('easy', 'hard', 'junk')
# What a pickle of lists, numbers and NumPy arrays is made of. Anything else could run code.
_HARMLESS = {
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    *((m, n) for m in ('numpy.core.multiarray', 'numpy._core.multiarray') for n in ('_reconstruct', 'scalar')),
    *((m, n) for m in ('numpy.core.numeric', 'numpy._core.numeric') for n in ('_frombuffer',)),
    ('_codecs', 'encode'),
}  # fmt: skip


class Oxford(NamedTuple):
    """Right answers of the Oxford and Paris benchmark.

    Attributes:
      images: names of the images that are searched, such as 'all_souls_000013'.
      queries: names of the query images.
      truths: for each query the positions of 'easy', 'hard' and 'junk' images.
      boxes: for each query the part of its image to search for, (left, top, right, bottom) in
        pixels, or None.
    """

    images: list[str]
    queries: list[str]
    truths: list[dict[str, list[int]]]
    boxes: list[tuple[float, ...] | None]


def read_pairs(path: AnyPath) -> dict[str, set[str]]:
    """Reads pairs of a query and its reference, as DISC21 publishes them.

    The file is CSV with the columns query_id and reference_id; the line with their names may be
    missing. A query without a reference has an empty reference_id, or is not in the file. A query
    with several references has several lines.

    Returns:
      The references of each query that is in the file.

    Raises:
      UserError: the file cannot be read, or a line has another form.
    """
    path, pairs = as_path(path), dict[str, set[str]]()
    try:
        rows = csv.reader(io.StringIO(path.read_text('utf-8-sig')))
        for number, row in enumerate(rows, 1):
            row = [word.strip() for word in row]
            if row in ([], _HEADER):
                continue
            if len(row) != 2 or not row[0]:
                raise UserError(
                    f'--truth={path}: line {number} is not query_id,reference_id: {",".join(row)!r:.80}'
                )
            pairs.setdefault(row[0], set()).update(filter(None, row[1:]))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise _unreadable(path, e) from None
    if not any(pairs.values()):
        raise UserError(f'--truth={path} has no pair of a query and a reference')
    return pairs


def read_oxford(path: AnyPath) -> Oxford:
    """Reads the right answers of the Oxford and Paris benchmark (Radenović et al. 2018).

    The file is gnd_roxford5k.pkl or gnd_rparis6k.pkl as published, or JSON of the same form:
    `{'imlist': [name, …], 'qimlist': [name, …], 'gnd': [{'easy': [position, …], 'hard': […],
    'junk': […], 'bbx': [left, top, right, bottom]}, …]}`, where positions count from 0 in `imlist`
    and `gnd` has an entry for each of `qimlist`. `bbx` may be missing. A pickle that holds anything
    but lists, numbers and arrays is refused, because it could run code.

    Raises:
      UserError: the file cannot be read or has another form.
    """
    path = as_path(path)
    try:
        data = path.read_bytes()
        read = (
            json.loads(data) if data.lstrip()[:1] == b'{' else _Unpickler(io.BytesIO(data)).load()
        )
        images, queries, gnd = ([*read[key]] for key in ('imlist', 'qimlist', 'gnd'))
        truths = [
            {level: np.asarray(some.get(level, ()), np.int64).ravel().tolist() for level in _LEVELS}
            for some in gnd
        ]
        boxes = [_box(some.get('bbx')) for some in gnd]
    except UserError:
        raise
    except OSError as e:
        raise _unreadable(path, e) from None
    except Exception as e:  # a damaged pickle raises anything
        raise UserError(
            f'--truth={path} is not of the form of gnd_roxford5k.pkl ({type(e).__name__}: {e!s:.80}); '
            'see docs/image_search.md'
        ) from None
    wrong = {i for truth in truths for some in truth.values() for i in some} - {*range(len(images))}
    if wrong or len(queries) != len(gnd):
        what = f'position {min(wrong)}' if wrong else f'{len(queries)} queries, {len(gnd)} answers'
        raise UserError(f'--truth={path} does not fit its {len(images)} images: {what}')
    return Oxford([*map(str, images)], [*map(str, queries)], truths, boxes)


class Positions:
    """Positions of images by the names that a truth may use: paths, file names, and their stems."""

    def __init__(self, names: Sequence[str], place: str):
        """Takes the images' names, and what they are, for messages."""
        self._found, self._place = dict[str, int | None](), place
        for position, name in enumerate(names):
            for key in {name, Path(name).name, Path(name).stem}:
                # None stands for several images of one name.
                known = self._found.setdefault(key, position)
                self._found[key] = position if known == position else None

    def __getitem__(self, name: str) -> int:
        """Returns the position of an image; raises UserError if there is not exactly one."""
        position = self._found.get(name)
        if position is None:
            what = 'is the name of several images in' if name in self._found else 'is not in'
            raise UserError(f'--truth: {name} {what} {self._place}')
        return position


def _box(bbx: Any) -> tuple[float, ...] | None:
    if bbx is None:
        return None
    box = np.asarray(bbx, np.float64).ravel().tolist()
    if len(box) != 4 or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        raise ValueError(f'bbx {box}')
    return tuple(box)


class _Unpickler(pickle.Unpickler):
    """Reads pickles that hold nothing but plain values and NumPy arrays."""

    def __init__(self, file: Any):
        super().__init__(file, encoding='latin1')  # the published files were written by Python 2

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise UserError(f'the pickle holds {module}.{name}, which could run code; use JSON')
        return super().find_class(module, name)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) else error
    return UserError(f'--truth={path} cannot be read: {reason}')
