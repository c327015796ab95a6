"""A task's answers for the examples of a split, in memory and on disk.

`experiments.evaluate` writes `report/predictions_NAME.jsonl` into the workdir (NAME is the split's,
or the evaluation's in `config.evals`), a line an example, in the order of the ids. Of a classification:

    {"id": 0, "path": null, "label": 3, "class": "three", "rank": 0, "loss": 0.0012,
     "predictions": [{"class": "three", "index": 3, "probability": 0.9988}, …]}

Other code reads it with `read_predictions(workdir, 'test')`: `ids` say which examples two files share.
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
    """The answers for N examples.

    Attributes:
      task: that gave them.
      columns: [N, …] by name, as `task.answers` returns them, with `id` int [N], ascending.
      paths: N paths, or None where the examples are no files.
    """

    task: Task
    columns: Columns
    paths: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.columns['id'])

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, [N, …]."""
        return self.columns[name]

    @property
    def ids(self) -> np.ndarray:
        """int [N], the examples' ids in the split, ascending."""
        return self.columns['id']

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.task.settings.class_names

    @property
    def correct(self) -> np.ndarray | None:
        """bool [N], which examples the task's first metric counts as right; None where it counts none."""
        value = next(iter(self.task.metrics.values())).of(self.columns)
        return value if isinstance(value, np.ndarray) and value.dtype == bool else None


def predictions_file(report: Path, name: str) -> Path:
    """Where the predictions of an evaluation are, in the folder of the reports."""
    return report / f'predictions_{name}.jsonl'


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes a line for each example; the file is there whole or not at all."""
    p, temporary = predictions, path.with_name(path.name + '.tmp')
    with open(temporary, 'w', encoding='utf-8') as file:
        for i in range(len(p)):
            where = None if p.paths is None else _printable(p.paths[i])
            record = {'id': int(p.ids[i]), 'path': where, **p.task.record(p.columns, i)}
            file.write(json_text(record, ensure_ascii=False) + '\n')
    replace(temporary, path)


def read_predictions(workdir: AnyPath, name: str = 'test') -> Predictions:
    """Reads the predictions that `experiments.evaluate` left in a workdir.

    Args:
      workdir: of the run.
      name: of the split, or of the evaluation in `config.evals`.

    Raises:
      UserError: there are none, or the file is damaged.
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
        there = [p.stem.removeprefix('predictions_') for p in report.glob('predictions_*.jsonl')]
        hint = f'; there are: {", ".join(sorted(there))}' if there else ''
        guess = nearest(name, there)
        hint = f' (did you mean {guess}?)' if guess else hint
        raise UserError(
            f'{path}: there are no such predictions{hint}. '
            f'experiments.evaluate --workdir={folder} writes them'
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, OSError) as e:
        raise UserError(f'{path} cannot be read: {e}. Evaluate the run again') from None
    return Predictions(task, columns, None if None in paths else paths)


def _with_names(task: Task, records: list[dict[str, Any]]) -> Task:
    """The task with the class names that the records mention: those of another data set are not the run's."""
    names: dict[int, str] = {}
    for record in records:
        if isinstance(record.get('label'), int) and 'class' in record:
            names[record['label']] = record['class']
        names |= {p['index']: p['class'] for p in record.get('predictions', ())}
    if not names:
        return task
    every = tuple(names.get(i, str(i)) for i in range(max(names) + 1))
    return task.with_class_names(every)


def _printable(path: str) -> str:
    """A file name is bytes; what is no UTF-8 in it is shown as a question mark."""
    return path.encode('utf-8', 'replace').decode()
