"""The engine of evaluation: a task's answers for every example of a split, each exactly once.

Validation during training, `evaluate`, `compare` and the ablations go through it: one model or several, one
view of an image or many, any number of devices and hosts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.core.text import described
from vision.preprocess.device import Batch
from vision.task.base import Task, prepared
from vision.task.metrics import Columns

_CHUNK = 4096  # examples that are judged at once where passes are averaged

Progress = Callable[[int], None]


class Labels(NamedTuple):
    """A data set's classes among the model's outputs (`vision.evaluation.classes.match`).

    Attributes:
      outputs: int [K'], which outputs are compared; None for all.
      of: int, by the data set's label: the position among those that are compared, −1 for none.
      size: how many classes are compared, K'.
    """

    outputs: np.ndarray | None
    of: np.ndarray
    size: int


class Member(NamedTuple):
    """One model and one pass over the data: its outputs count as much as every other member's.

    Attributes:
      step: of `make_step`.
      variables: params and batch_stats, on the mesh.
      batches: every example of the split once, padding with mask 0.
      skipped: returns how many examples the pass left out on purpose; asked when it is through.
    """

    step: Callable[[Any, Batch], Batch]
    variables: Any
    batches: Iterable[Batch]
    skipped: Callable[[], int] = lambda: 0


def make_step(
    task: Task, model: nn.Module, mesh: Mesh, labels: Labels | None = None, judge: bool = True
) -> Callable[[Any, Batch], Batch]:
    """Builds the jitted forward pass of evaluation: `step(variables, batch)`.

    Args:
      task: prepares the batch and judges the outputs.
      model: unbound.
      mesh: of all devices.
      labels: where the data's classes are among the outputs; None where they are the same.
      judge: return the task's answers; else the outputs, for averaging.

    Returns:
      A function to columns [B, …] on every device: `id` and `mask` as they came, `label` among the compared
      classes, with `labels` also `data_label` as it came, and the task's answers or `outputs` float32 [B, K]. Several views of
      an image ([B, V, H, W, C]) are combined into one output, as `Task.combine` does it.
    """

    def step(variables: Any, batch: Batch) -> Batch:
        variables = mesh_lib.constrain_state(variables, mesh, 'data')  # of 'fsdp', too
        images = prepared(task, batch)['image']
        views = images.shape[1] if images.ndim == 5 else 1
        if images.ndim == 5:
            images = images.reshape(-1, *images.shape[2:])
        forward: Any = model.apply(variables, images, train=False)
        outputs, endpoints = forward
        fixed = {'id': batch['id'], 'mask': batch['mask']}
        if labels is not None:
            fixed['data_label'] = batch['label']
            batch = {**batch, 'label': _relabel(batch['label'], labels)}
            if labels.outputs is not None:
                outputs, endpoints = outputs[:, labels.outputs], {}
        if views > 1:
            by_view = outputs.reshape(-1, views, outputs.shape[-1]).swapaxes(0, 1)
            outputs, endpoints = task.combine(by_view, jnp.full(views, 1 / views)), {}
        answers = _answers(task, outputs, endpoints, batch) if judge else {'outputs': outputs}
        return {'label': batch['label'], **answers, **fixed}

    return jax.jit(
        step,
        in_shardings=(None, mesh_lib.split_batch(mesh)),
        out_shardings=mesh_lib.replicated(mesh),
    )


def _answers(
    task: Task, outputs: jax.Array, endpoints: dict[str, Any], batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The task's answers; a UserError where it needs endpoints that an average does not have, or returns no columns."""
    try:
        found = task.answers(outputs, endpoints, batch)
    except KeyError as e:
        if endpoints:
            raise
        raise UserError(
            f'task {type(task).__name__} judges by the endpoint {e}, which is not there where several '
            'views or runs are averaged, or only some classes are compared'
        ) from None
    rows, what = len(batch['mask']), described(found)
    if isinstance(found, dict):
        wrong = {name: x for name, x in found.items() if np.shape(x)[:1] != (rows,)}
        what = ', '.join(f'{name}: {described(x)}' for name, x in wrong.items())
    if what:
        raise UserError(
            f'{type(task).__name__}.answers must return a dict of arrays [{rows}, …], a row an example, not {what}'
        )
    return found


def answer(
    task: Task,
    members: Sequence[Member],
    num_examples: int,
    check_labels: Callable[[np.ndarray], None] = lambda labels: None,
    progress: Progress = lambda done: None,
) -> Columns:
    """Feeds a split to every member and collects the answers.

    A single member's batches are judged on the device as they come. The outputs of several are averaged with
    equal weights (`Task.combine`), which holds float32 [N, K], and judged at the end.

    Args:
      task: judges.
      members: at least one; a single one's step judges, those of several do not.
      num_examples: of the split, N.
      check_labels: gets the data's labels of each batch; raises for one that cannot be judged.
      progress: is told how many examples are done, over all members.

    Returns:
      Columns [n, …] in the order of the ids: of the n ≤ N examples that no member skipped.

    Raises:
      RuntimeError: an example was left out or counted twice.
      UserError: no image could be read, or what `check_labels` raises.
    """
    done, average = 0, None
    for number, member in enumerate(members):
        parts = []
        for part in _read_behind(member.step(member.variables, b) for b in member.batches):
            check_labels(part.pop('data_label', part['label']))
            parts.append(part)
            done += len(part['id'])
            progress(done)
        columns = _ordered(parts, num_examples, member.skipped())
        if len(members) == 1:
            return columns
        average = columns if average is None else _averaged(task, average, columns, number)
    assert average is not None
    return _judged(task, average)


def _relabel(label: jax.Array, labels: Labels) -> jax.Array:
    """The data's labels as positions among the compared classes: int [B], or float [B, K]."""
    positions = jnp.asarray(labels.of)
    if label.ndim == 1:
        known = (label >= 0) & (label < len(labels.of))
        return jnp.where(known, positions[jnp.where(known, label, 0)], -1)
    kept = np.flatnonzero(labels.of >= 0)
    return (
        jnp.zeros((len(label), labels.size), label.dtype).at[:, labels.of[kept]].set(label[:, kept])
    )


def _read_behind(results: Iterator[Batch]) -> Iterator[Columns]:
    """Reads real examples' columns one batch behind, so that the device computes meanwhile."""
    previous = None
    for result in results:
        if previous is not None:
            yield _real(previous)
        previous = result
    if previous is not None:
        yield _real(previous)


def _real(result: Batch) -> Columns:
    host = jax.device_get(result)
    real = host.pop('mask') > 0
    return {name: values[real] for name, values in host.items()}


def _ordered(parts: Sequence[Columns], num_examples: int, skipped: int) -> Columns:
    """One set of columns in the order of the ids, checked to hold every example once."""
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    check_count(columns['id'], num_examples, skipped)
    order = np.argsort(columns['id'], kind='stable')
    return {name: values[order] for name, values in columns.items()}


def check_count(ids: np.ndarray, num_examples: int, skipped: int = 0) -> None:
    """Checks that each of 0 … num_examples − 1 was counted exactly once.

    Args:
      ids: int [n], of the examples that were counted.
      num_examples: of the split.
      skipped: how many of them were left out on purpose.

    Raises:
      RuntimeError: one is missing or came more than once.
      UserError: none was counted.
    """
    times = np.bincount(ids, minlength=num_examples)
    missing, twice = int((times == 0).sum()) - skipped, int((times > 1).sum())
    if len(times) != num_examples or missing or twice:
        raise RuntimeError(
            f'evaluation counted {len(ids)} examples of {num_examples} ({skipped} skipped): '
            f'{missing} were left out, {twice} came more than once'
        )
    if not len(ids):
        raise UserError('none of the images can be read: there is nothing to evaluate')


def _averaged(task: Task, average: Columns, columns: Columns, number: int) -> Columns:
    """The running mean of `number` members' outputs, with one more; of the examples that all could read."""
    ids, ours, theirs = np.intersect1d(average['id'], columns['id'], return_indices=True)
    weights = np.array([number, 1], np.float32) / (number + 1)
    combine = jax.jit(task.combine)
    outputs = []
    for start in range(0, len(ids), _CHUNK):
        rows = slice(start, start + _CHUNK)
        pair = (average['outputs'][ours[rows]], columns['outputs'][theirs[rows]])
        outputs.append(np.asarray(combine(np.stack(pair), weights)))
    return {'id': ids, 'label': average['label'][ours], 'outputs': np.concatenate(outputs)}


def _judged(task: Task, average: Columns) -> Columns:
    """The task's answers for averaged outputs."""

    @jax.jit
    def judge(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return _answers(task, batch['outputs'], {}, batch)

    parts = []
    for start in range(0, len(average['id']), _CHUNK):
        rows = {name: values[start : start + _CHUNK] for name, values in average.items()}
        mask = np.ones(len(rows['id']), np.float32)
        answers = jax.device_get(judge({**rows, 'mask': mask}))
        parts.append({'label': rows['label'], **answers, 'id': rows['id']})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
