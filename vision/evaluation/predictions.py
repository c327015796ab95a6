"""Predictions for the examples of a split, in memory and on disk.

`experiments.evaluate` writes `report/predictions_NAME.jsonl` into the workdir, where NAME is
`Evaluation.saved_as`: 'test', 'test_last', 'photos_test_3f2c1a'. It has one line per example, in the
order of the ids. For classification:

    {"id": 0, "path": null, "label": 3, "class": "three", "rank": 0, "loss": 0.0012,
     "predictions": [{"class": "three", "index": 3, "probability": 0.9988}, …]}

`read_predictions(workdir, 'test')` reads it. Lines with the same id in the files of several runs
belong to the same example.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from vision.core.errors import UserError, nearest
from vision.core.text import AnyPath, json_text
from vision.core.workdir import locate, replace
from vision.task.base import Task
from vision.task.metrics import Columns


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for N examples.

    Attributes:
      task: the task that computed them.
      columns: [N, …] by name, as `task.answers` returns them, with `id` int [N], ascending.
      paths: N paths, or None if the examples are not files.
    """

    task: Task
    columns: Columns
    paths: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.columns['id'])

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns a column, [N, …]."""
        return self.columns[name]

    @property
    def ids(self) -> np.ndarray:
        """Ids of the examples in the split, int [N], ascending."""
        return self.columns['id']

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.task.settings.class_names

    @property
    def correct(self) -> np.ndarray | None:
        """Correctness by the task's first metric, bool [N]; None if that metric is not boolean."""
        value = next(iter(self.task.metrics.values())).of(self.columns)
        return value if isinstance(value, np.ndarray) and value.dtype == bool else None


def predictions_file(report: Path, name: str) -> Path:
    """Returns the path of an evaluation's predictions in the report folder."""
    return report / f'predictions_{name}.jsonl'


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes one line per example, atomically."""
    # Write to a temporary file first, so that a killed process leaves no partial file.
    p, temporary = predictions, path.with_name(path.name + '.tmp')
    with open(temporary, 'w', encoding='utf-8') as file:
        for i in range(len(p)):
            where = None if p.paths is None else _printable(p.paths[i])
            record = {'id': int(p.ids[i]), 'path': where, **p.task.record(p.columns, i)}
            file.write(json_text(record, ensure_ascii=False) + '\n')
    replace(temporary, path)


def read_predictions(workdir: AnyPath, name: str = 'test') -> Predictions:
    """Reads the predictions that `experiments.evaluate` wrote to a workdir.

    Args:
      workdir: workdir of the run.
      name: `Evaluation.saved_as`, the name in the printed table: 'test', 'test_last',
        'photos_test_3f2c1a'.

    Raises:
      UserError: the predictions do not exist, or the file is damaged.
    """
    from vision.task.base import read_task

    folder = locate(workdir)
    report = folder / 'report'
    path = predictions_file(report, name)
    try:
        with open(path, encoding='utf-8') as file:
            records = [json.loads(line) for line in file]
        task = _with_names(read_task(folder), records)
        columns = {'id': np.array([r['id'] for r in records]), **task.from_records(records)}
        paths = tuple(r['path'] for r in records)
    except FileNotFoundError:
        # Name the predictions that exist, or the nearest one.
        there = [p.stem.removeprefix('predictions_') for p in report.glob('predictions_*.jsonl')]
        hint = f'; there are: {", ".join(sorted(there))}' if there else ''
        guess = nearest(name, there)
        hint = f' (did you mean {guess}?)' if guess else hint
        raise UserError(
            f'{path}: no such predictions{hint}. '
            f'experiments.evaluate --workdir={folder} writes them'
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, OSError) as e:
        raise UserError(f'{path} cannot be read: {e}. Evaluate the run again') from None
    return Predictions(task, columns, None if None in paths else paths)


def _with_names(task: Task, records: list[dict[str, Any]]) -> Task:
    """Returns the task with the records' class names, which may be those of another data set."""
    names: dict[int, str] = {}
    for record in records:
        # Single-label records name their class directly.
        if isinstance(record.get('label'), int) and 'class' in record:
            names[record['label']] = record['class']
        names |= {p['index']: p['class'] for p in record.get('predictions', ())}
    if not names:
        return task
    every = tuple(names.get(i, str(i)) for i in range(max(names) + 1))
    return task.with_class_names(every)


def _printable(path: str) -> str:
    """Replaces bytes of a file name that are not UTF-8 by question marks."""
    return path.encode('utf-8', 'replace').decode()
