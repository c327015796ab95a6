"""Scores of every example of a split: one model or several, one view of an image or many.

A single pass is streamed: a batch is judged and forgotten. Where passes are averaged (several
scales, several runs) the mean of each example's probabilities is held as float32 [N, K], 200 MB for
ImageNet's 50,000 × 1,000.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.data.source import FileSource, Source, count_named
from vision.evaluation.classes import Classes
from vision.evaluation.predictions import Predictions, from_scores, join
from vision.evaluation.protocols import Pass
from vision.evaluation.run import Run
from vision.evaluation.whole import WholeBatches
from vision.preprocess import inputs
from vision.preprocess.device import Batch, normalise

_CHUNK = 4096  # examples that are judged at once

Progress = Callable[[int], None]


class Member(NamedTuple):
    """One model and one pass over the data: its answers count as much as every other member's."""

    run: Run
    view: Pass


class Scored(NamedTuple):
    """A split's predictions, and the images that could not be read: name → reason."""

    predictions: Predictions
    corrupt: dict[str, str]


def predict_source(
    members: list[Member],
    source: Source,
    classes: Classes,
    skip_corrupt: bool = False,
    progress: Progress = lambda done: None,
) -> Scored:
    """Feeds a split to every member and averages their probabilities.

    Args:
      members: at least one.
      source: the split.
      classes: as `classes.match` found them.
      skip_corrupt: leave out images that cannot be read.
      progress: is told how many examples are done, over all members.

    Raises:
      UserError: images that cannot be read, or that the model cannot take; labels that are missing.
    """
    n, corrupt = source.num_examples, dict[str, str]()
    mean = np.full((n, len(classes.names)), -np.inf, np.float32) if len(members) > 1 else None
    seen, labels, parts, done = np.zeros(n, np.int64), np.zeros(n, np.int64), [], 0
    for member in members:
        batches = _batches(member, source, skip_corrupt)
        for ids, batch_labels, scores in _run_model(member, batches, classes):
            batch_labels = classes.of(batch_labels, source)
            seen[ids] += 1
            done += len(ids)
            progress(done)
            if mean is None:
                parts.append(from_scores(ids, batch_labels, scores, classes.names))
            else:
                labels[ids] = batch_labels
                mean[ids] = np.logaddexp(mean[ids], _log_probabilities(scores))
        corrupt |= batches.corrupt
    _check_seen(seen, len(members), count_named(source, corrupt))
    if mean is not None:
        there = np.flatnonzero(seen == len(members))
        for start in range(0, len(there), _CHUNK):
            ids = there[start : start + _CHUNK]
            parts.append(from_scores(ids, labels[ids], mean[ids], classes.names))
    return Scored(join(parts, source.paths if isinstance(source, FileSource) else None), corrupt)


def _batches(
    member: Member, source: Source, skip_corrupt: bool
) -> 'inputs.EvalBatches | WholeBatches':
    run, view = member
    size = run.config.evaluation.batch_size
    if view.dense:
        return WholeBatches(source, view.ops, max(1, size // 2), run.mesh, skip_corrupt)
    if view.ops == run.config.preprocess.eval:
        return inputs.EvalBatches(source, view.ops, size, run.mesh, skip_corrupt)
    shape = inputs.input_shape(source, view.ops)
    views = shape[0] if len(shape) == 4 else 1
    return inputs.EvalBatches(source, view.ops, max(1, size // views), run.mesh, skip_corrupt)


def _run_model(
    member: Member, batches: Iterable[Batch], classes: Classes
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields ids [n], the data set's labels [n] and scores float32 [n, K] of what is not padding."""
    run, view = member
    step = _score_step(run, view.dense, classes)
    expected = run.input_shape if view.ops == run.config.preprocess.eval else None
    previous = None
    for batch in batches:
        fed = batch['image'].shape[-3:]
        if expected is not None and fed != expected:
            raise UserError(
                f'preprocess.eval makes images of {list(fed)} of this data; '
                f'the model of {run.path} was trained on {list(expected)}'
            )
        current = step(run.variables, batch)  # the device runs one batch ahead of the host
        if previous is not None:
            yield _real(previous)
        previous = current
    if previous is not None:
        yield _real(previous)


def _score_step(run: Run, dense: bool, classes: Classes) -> Callable[[Any, Batch], Batch]:
    """Builds the jitted step: a batch to `id`, `mask`, `label` and `scores` float32 [B, K].

    Of one view scores are the logits; of several ([B, V, H, W, C]) they are the logarithm of the
    mean of the views' probabilities.
    """
    model, preprocess = run.model, run.config.preprocess
    if dense and hasattr(model, 'dense_evaluation'):
        model = model.clone(dense_evaluation=True)

    def step(variables: Any, batch: Batch) -> Batch:
        images = normalise(batch['image'], preprocess.mean, preprocess.std)
        logits, _ = model.apply(variables, images.reshape(-1, *images.shape[-3:]), train=False)
        if classes.logits is not None:
            logits = logits[:, classes.logits]
        if images.ndim == 5:
            views = jax.nn.log_softmax(logits).reshape(*images.shape[:2], -1)
            logits = jax.nn.logsumexp(views, axis=1) - jnp.log(images.shape[1])
        return {'scores': logits, **{k: batch[k] for k in ('id', 'label', 'mask')}}

    replicated = mesh_lib.replicated(run.mesh)
    shardings = (replicated, mesh_lib.split_batch(run.mesh))
    return jax.jit(step, in_shardings=shardings, out_shardings=replicated)


def _real(result: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    host = jax.device_get(result)
    real = host['mask'] > 0
    return host['id'][real], host['label'][real], host['scores'][real]


def _log_probabilities(scores: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float64)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def _check_seen(seen: np.ndarray, members: int, corrupt: int) -> None:
    """Raises RuntimeError unless every member saw every example once, the corrupt ones aside."""
    missing, twice = int((seen < members).sum()) - corrupt, int((seen > members).sum())
    if missing or twice:
        raise RuntimeError(
            f'evaluation of {len(seen)} examples ({corrupt} skipped): {missing} were left out, '
            f'{twice} came more than once'
        )
    if not (seen == members).any():
        raise UserError('none of the images can be read: there is nothing to evaluate')
