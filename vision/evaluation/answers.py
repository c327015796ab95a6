"""The evaluation engine: computes a task's answers for every example of a split exactly once.

Answers are the values that a task computes for each example, such as loss and predicted classes;
metrics are computed from them. Validation during training, `evaluate`, `compare` and the ablations
use this engine. It supports several models, several views of an image, and any number of devices
and hosts.
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

_CHUNK = 4096  # number of examples per call when outputs are averaged

Progress = Callable[[int], None]


class Labels(NamedTuple):
    """Mapping between a data set's classes and the model's outputs (`classes.match`).

    Attributes:
      outputs: int [K'], the outputs that are compared; None for all.
      of: int, indexed by the data set's label: position of the class among the compared classes, or
        −1 if it is not compared.
      size: number of compared classes, K'.
    """

    outputs: np.ndarray | None
    of: np.ndarray
    size: int


class Member(NamedTuple):
    """One model and one pass over the data. All members count equally in the average.

    Attributes:
      step: the result of `make_step`.
      variables: params and batch_stats, on the mesh.
      batches: every example of the split once; padding has mask 0.
      skipped: returns the number of examples that the pass skipped; called after the pass.
    """

    step: Callable[[Any, Batch], Batch]
    variables: Any
    batches: Iterable[Batch]
    skipped: Callable[[], int] = lambda: 0


def make_step(
    task: Task, model: nn.Module, mesh: Mesh, labels: Labels | None = None, judge: bool = True
) -> Callable[[Any, Batch], Batch]:
    """Builds the jitted forward pass of evaluation, `step(variables, batch)`.

    Args:
      task: prepares the batch and computes the answers.
      model: the unbound module.
      mesh: all devices.
      labels: mapping between the data's classes and the outputs; None if they are the same.
      judge: if True, the step returns the task's answers; if False, the model's outputs, which the
        caller averages.

    Returns:
      A function that returns columns [B, …], replicated on all devices: `id` and `mask` of the
      batch; `label` among the compared classes; `data_label`, the original label, if `labels` is
      given; and the task's answers or `outputs` float32 [B, K]. The outputs of several views
      [B, V, H, W, C] are combined by `Task.combine`.
    """

    def step(variables: Any, batch: Batch) -> Batch:
        variables = mesh_lib.constrain_state(variables, mesh, 'data')  # gathers 'fsdp' shards
        # Run all views in one batch.
        images = prepared(task, batch)['image']
        views = images.shape[1] if images.ndim == 5 else 1
        if images.ndim == 5:
            images = images.reshape(-1, *images.shape[2:])
        forward: Any = model.apply(variables, images, train=False)
        outputs, endpoints = forward
        # Map the labels, and select the outputs that are compared.
        fixed = {'id': batch['id'], 'mask': batch['mask']}
        if labels is not None:
            fixed['data_label'] = batch['label']
            batch = {**batch, 'label': _relabel(batch['label'], labels)}
            if labels.outputs is not None:
                outputs, endpoints = outputs[:, labels.outputs], {}
        # Average the views of each image.
        if views > 1:
            by_view = outputs.reshape(-1, views, outputs.shape[-1]).swapaxes(0, 1)
            outputs, endpoints = task.combine(by_view, jnp.full(views, 1 / views)), {}
        answers = _answers(task, outputs, endpoints, batch) if judge else {'outputs': outputs}
        return {'label': batch['label'], **answers, **fixed}

    # Answers are replicated, so that every process has all of them.
    return jax.jit(
        step,
        in_shardings=(None, mesh_lib.split_batch(mesh)),
        out_shardings=mesh_lib.replicated(mesh),
    )


def _answers(
    task: Task, outputs: jax.Array, endpoints: dict[str, Any], batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Returns the task's answers after checking them.

    Raises:
      UserError: the task needs endpoints, which do not exist for averaged outputs, or it does not
        return columns.
    """
    try:
        found = task.answers(outputs, endpoints, batch)
    except KeyError as e:
        if endpoints:
            raise
        raise UserError(
            f'task {type(task).__name__} needs the endpoint {e}, which does not exist if several '
            'views or runs are averaged or only some classes are compared'
        ) from None
    # Each column must have one row per example of the batch.
    rows, what = len(batch['mask']), described(found)
    if isinstance(found, dict):
        wrong = {name: x for name, x in found.items() if np.shape(x)[:1] != (rows,)}
        what = ', '.join(f'{name}: {described(x)}' for name, x in wrong.items())
    if what:
        raise UserError(
            f'{type(task).__name__}.answers must return a dict of arrays [{rows}, …], '
            f'one row per example, not {what}'
        )
    return found


def answer(
    task: Task,
    members: Sequence[Member],
    num_examples: int,
    check_labels: Callable[[np.ndarray], None] = lambda labels: None,
    progress: Progress = lambda done: None,
) -> Columns:
    """Runs every member on a split and collects the answers.

    A single member's answers are computed on the device, batch by batch. The outputs of several
    members are averaged with equal weights (`Task.combine`), and the answers are computed from the
    averages at the end; this keeps an array float32 [N, K] in memory.

    Args:
      task: computes the answers.
      members: at least one. The step of a single member returns answers; the steps of several
        members return outputs.
      num_examples: size N of the split.
      check_labels: called with the data's labels of each batch; raises for an invalid one.
      progress: called with the number of examples done, over all members.

    Returns:
      Columns [n, …] in the order of the ids, for the n ≤ N examples that no member skipped.

    Raises:
      RuntimeError: an example was omitted or counted twice.
      UserError: no image could be read, or `check_labels` raised it.
    """
    done, average = 0, None
    for number, member in enumerate(members):
        parts = []
        # Check labels and count examples batch by batch.
        for part in _read_behind(member.step(member.variables, b) for b in member.batches):
            check_labels(part.pop('data_label', part['label']))
            parts.append(part)
            done += len(part['id'])
            progress(done)
        columns = _ordered(parts, num_examples, member.skipped())
        # A single member has computed the answers already.
        if len(members) == 1:
            return columns
        # Keep a running mean instead of the outputs of all members.
        average = columns if average is None else _averaged(task, average, columns, number)
    assert average is not None
    return _judged(task, average)


def _relabel(label: jax.Array, labels: Labels) -> jax.Array:
    """Maps the data's labels to positions among the compared classes: int [B] or float [B, K]."""
    positions = jnp.asarray(labels.of)
    if label.ndim == 1:
        # Out-of-range labels become −1, which `check_labels` reports.
        known = (label >= 0) & (label < len(labels.of))
        return jnp.where(known, positions[jnp.where(known, label, 0)], -1)
    # Multi-label: move each kept class to its position.
    kept = np.flatnonzero(labels.of >= 0)
    return (
        jnp.zeros((len(label), labels.size), label.dtype).at[:, labels.of[kept]].set(label[:, kept])
    )


def _read_behind(results: Iterator[Batch]) -> Iterator[Columns]:
    """Yields columns without padding, delayed by one batch so that the device keeps computing."""
    previous = None
    for result in results:
        if previous is not None:
            yield _real(previous)
        previous = result
    if previous is not None:
        yield _real(previous)


def _real(result: Batch) -> Columns:
    """Reads columns from the device and drops padding."""
    host = jax.device_get(result)
    real = host.pop('mask') > 0
    return {name: values[real] for name, values in host.items()}


def _ordered(parts: Sequence[Columns], num_examples: int, skipped: int) -> Columns:
    """Concatenates columns, sorts them by id and checks that every example occurs once."""
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    check_count(columns['id'], num_examples, skipped)
    order = np.argsort(columns['id'], kind='stable')
    return {name: values[order] for name, values in columns.items()}


def check_count(ids: np.ndarray, num_examples: int, skipped: int = 0) -> None:
    """Checks that each id in 0 … num_examples − 1 was counted exactly once.

    Args:
      ids: int [n], the counted examples.
      num_examples: size of the split.
      skipped: number of examples that were skipped on purpose.

    Raises:
      RuntimeError: an example is missing or was counted more than once.
      UserError: no example was counted.
    """
    # Padding has been dropped, so each id must occur once.
    times = np.bincount(ids, minlength=num_examples)
    missing, twice = int((times == 0).sum()) - skipped, int((times > 1).sum())
    if len(times) != num_examples or missing or twice:
        raise RuntimeError(
            f'evaluation counted {len(ids)} examples of {num_examples} ({skipped} skipped): '
            f'{missing} are missing, {twice} were counted more than once'
        )
    if not len(ids):
        raise UserError('no image can be read: there is nothing to evaluate')


def _averaged(task: Task, average: Columns, columns: Columns, number: int) -> Columns:
    """Adds one member to the mean outputs of `number` members, for the examples that both have."""
    # Combine in chunks, to bound the memory on the device.
    ids, i, j = np.intersect1d(average['id'], columns['id'], return_indices=True)
    # The mean of n + 1 members from the mean of n and one more.
    weights = np.array([number, 1], np.float32) / (number + 1)
    combine = jax.jit(task.combine)
    outputs = []
    for start in range(0, len(ids), _CHUNK):
        rows = slice(start, start + _CHUNK)
        pair = (average['outputs'][i[rows]], columns['outputs'][j[rows]])
        outputs.append(np.asarray(combine(np.stack(pair), weights)))
    return {'id': ids, 'label': average['label'][i], 'outputs': np.concatenate(outputs)}


def _judged(task: Task, average: Columns) -> Columns:
    """Returns the task's answers for averaged outputs."""

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
