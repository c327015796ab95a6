"""What a model said of each example of a split, in memory and on disk.

`experiments.evaluate` writes `report/predictions_NAME.jsonl` into the workdir (NAME is the split's,
or the evaluation's in `config.evals`), a line an example, in the order of the ids:

    {"id": 0, "path": null, "label": 3, "class": "three", "rank": 0, "loss": 0.0012,
     "predictions": [{"class": "three", "index": 3, "probability": 0.9988}, …]}

Other code reads it with `read_predictions(workdir, 'test')`: `ids` say which examples two files
share, `correct` is what McNemar's test compares.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision.core.errors import UserError, nearest

TOP_K = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The answers for N examples of K classes, of which the k ≤ 5 likeliest are kept.

    Attributes:
      class_names: K names.
      ids: int64 [N], ascending.
      labels: int32 [N].
      rank: int32 [N], how many classes were put before the right one; 0 is a right answer.
      loss: float64 [N], −log of the right class's probability.
      squared_error: float64 [N], the sum over classes of (probability − 1 or 0)²; NaN if read
        from a file, which does not hold it.
      top_classes: int32 [N, k], the likeliest first; of equals the lower index.
      top_probabilities: float64 [N, k].
      paths: N paths, or None where the examples are no files.
    """

    class_names: tuple[str, ...]
    ids: np.ndarray
    labels: np.ndarray
    rank: np.ndarray
    loss: np.ndarray
    squared_error: np.ndarray
    top_classes: np.ndarray
    top_probabilities: np.ndarray
    paths: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def correct(self) -> np.ndarray:
        """bool [N], whether the right class came first."""
        return self.rank < 1

    @property
    def predicted(self) -> np.ndarray:
        """int32 [N], the class that was named."""
        return self.top_classes[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """float64 [N], the probability of the class that was named."""
        return self.top_probabilities[:, 0]


def from_scores(
    ids: np.ndarray, labels: np.ndarray, scores: np.ndarray, class_names: tuple[str, ...]
) -> Predictions:
    """Judges scores, in float64.

    Args:
      ids: int [N].
      labels: int [N].
      scores: float [N, K], logits or log-probabilities: softmax makes probabilities of them. One
        that is not a number goes before all others, so that such a model is never right.
      class_names: K names.
    """
    scores = np.asarray(scores, np.float64)
    right = np.take_along_axis(scores, labels[:, None], axis=1)
    lower = np.arange(scores.shape[1]) < labels[:, None]
    ahead = ~(scores <= right) | ((scores == right) & lower)
    with np.errstate(invalid='ignore'):  # what is no number stays one that is none
        highest = scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores - highest)
        total = probabilities.sum(axis=1, keepdims=True)
        probabilities /= total
    right_probability = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    top = _top(scores, TOP_K)
    return Predictions(
        class_names=class_names,
        ids=ids.astype(np.int64),
        labels=labels.astype(np.int32),
        rank=ahead.sum(1, dtype=np.int32),
        loss=(np.log(total) + (highest - right))[:, 0],
        squared_error=np.square(probabilities).sum(1) - 2 * right_probability + 1,
        top_classes=top.astype(np.int32),
        top_probabilities=np.take_along_axis(probabilities, top, axis=1),
    )


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """The k highest of each row, int64 [N, min(k, K)]; of equals the lower index, NaN first."""
    left = np.maximum(scores, np.finfo(scores.dtype).min)  # below what was taken
    top = np.empty((len(left), min(k, left.shape[1])), np.int64)
    for place in range(top.shape[1]):
        top[:, place] = left.argmax(1)
        left[np.arange(len(left)), top[:, place]] = -np.inf
    return top


def join(parts: Iterable[Predictions], paths: Sequence[str] | None = None) -> Predictions:
    """One set of predictions out of parts, in the order of the ids.

    Args:
      parts: at least one, of the same classes.
      paths: of the whole split, by id; None where the examples are no files.
    """
    parts = list(parts)
    columns = [f.name for f in dataclasses.fields(Predictions) if f.name not in _NO_COLUMNS]
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in columns}
    order = np.argsort(joined['ids'], kind='stable')
    return Predictions(
        class_names=parts[0].class_names,
        paths=None if paths is None else tuple(paths[i] for i in joined['ids'][order]),
        **{name: values[order] for name, values in joined.items()},
    )


def predictions_file(report: Path, name: str) -> Path:
    """Where the predictions of an evaluation are, in the folder of the reports."""
    return report / f'predictions_{name}.jsonl'


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes a line for each example; the file is there whole or not at all."""
    p, temporary = predictions, path.with_name(path.name + '.tmp')
    with open(temporary, 'w', encoding='utf-8') as file:
        for i in range(len(p)):
            top = zip(p.top_classes[i].tolist(), p.top_probabilities[i].tolist(), strict=True)
            label = int(p.labels[i])
            record = {
                'id': int(p.ids[i]),
                'path': None if p.paths is None else _printable(p.paths[i]),
                'label': label,
                'class': p.class_names[label],
                'rank': int(p.rank[i]),
                'loss': _number(p.loss[i]),
                'predictions': [
                    {'class': p.class_names[j], 'index': j, 'probability': _number(probability)}
                    for j, probability in top
                ],
            }
            file.write(json.dumps(record, ensure_ascii=False) + '\n')
    os.replace(temporary, path)


def read_predictions(workdir: str | os.PathLike, name: str = 'test') -> Predictions:
    """Reads the predictions that `experiments.evaluate` left in a workdir.

    Args:
      workdir: of the run.
      name: of the split, or of the evaluation in `config.evals`.

    Raises:
      UserError: there are none, or the file is damaged.
    """
    report = Path(workdir).expanduser() / 'report'
    path = predictions_file(report, name)
    class_names: dict[int, str] = {}
    try:
        with open(path, encoding='utf-8') as file:
            records = [_remember(json.loads(line), class_names) for line in file]
        columns = [np.array(column) for column in zip(*records, strict=True)]
        ids, labels, rank, loss, classes, probabilities, paths = columns
    except FileNotFoundError:
        there = [p.stem.removeprefix('predictions_') for p in report.glob('predictions_*.jsonl')]
        hint = f'; there are: {", ".join(sorted(there))}' if there else ''
        guess = nearest(name, there)
        hint = f'; did you mean {guess}?' if guess else hint
        raise UserError(
            f'{path}: there are no such predictions{hint}. '
            f'python -m experiments.evaluate --workdir={workdir} writes them'
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise UserError(f'{path} cannot be read: {e}. Evaluate the run again') from None
    names = tuple(class_names.get(i, str(i)) for i in range(max(class_names) + 1))
    return Predictions(
        class_names=names,
        ids=ids.astype(np.int64),
        labels=labels.astype(np.int32),
        rank=rank.astype(np.int32),
        loss=loss.astype(np.float64),
        squared_error=np.full(len(ids), np.nan),
        top_classes=classes.astype(np.int32),
        top_probabilities=probabilities.astype(np.float64),
        paths=None if paths[0] is None else tuple(paths.tolist()),
    )


_NO_COLUMNS = ('class_names', 'paths')


def _remember(record: dict[str, Any], class_names: dict[int, str]) -> tuple[Any, ...]:
    """A line's columns; notes the names of the classes that it mentions."""
    class_names[record['label']] = record['class']
    class_names |= {p['index']: p['class'] for p in record['predictions']}
    return (
        record['id'],
        record['label'],
        record['rank'],
        _nan(record['loss']),
        [p['index'] for p in record['predictions']],
        [_nan(p['probability']) for p in record['predictions']],
        record['path'],
    )


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None


def _nan(value: float | None) -> float:
    return float('nan') if value is None else value


def _printable(path: str) -> str:
    """A file name is bytes; what is no UTF-8 in it is shown as a question mark."""
    return path.encode('utf-8', 'replace').decode()
