"""Multi-label classification: any number of classes per example; average precision and F1."""

import dataclasses
import functools
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core.config_keys import Range
from vision.core.errors import UserError
from vision.task.base import Apply, Batch, Examples, Outcome, Task
from vision.task.classification import check_outputs
from vision.task.losses import Criterion, make_criterion
from vision.task.metrics import Columns, Metric

# Losses for exactly one correct class per example.
_ONE_CLASS = ('softmax_cross_entropy', 'focal', 'lenet_mse', 'lenet_discriminative')


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Classification with K independent binary classes; labels are float32 [N, K] of 0 and 1.

    Args:
      threshold: minimum probability of a predicted class, for F1 and for `predict`.
    """

    threshold: Annotated[float, Range(above=0, below=1)] = 0.5

    takes_views = False
    report = 'vision.evaluation.report.multilabel:section'

    @functools.cached_property
    def criterion(self) -> Criterion:
        """The binary loss of each class, summed over the classes."""
        name = self.settings.loss['name']
        if name in _ONE_CLASS:
            raise UserError(
                f"loss {name!r} is for one class per example; with task 'multilabel' set "
                "loss.name='sigmoid_cross_entropy'"
            )
        criterion = make_criterion(self.settings.loss, self.settings.num_outputs)
        # Class weights are applied by scaling the targets, which does not scale a binary loss.
        if criterion.class_weights:
            raise UserError("loss.class_weights: task 'multilabel' supports no class weights")
        return criterion

    def prepare(self, batch: Batch, key: jax.Array | None = None) -> Examples:
        """Adds `targets` float32 [B, K]: labels y, mixed and smoothed to (1 − ε) y + ε / 2."""
        examples = super().prepare(batch, key)
        if key is None:
            return examples
        # The model may have more outputs than the data have classes.
        missing = self.settings.num_outputs - batch['label'].shape[-1]
        targets = jnp.pad(batch['label'], ((0, 0), (0, missing)))
        images, targets = self.mixed(examples['image'], targets, batch['mask'], key)
        smoothing = self.criterion.label_smoothing
        targets = targets * (1 - smoothing) + smoothing / 2
        return {**examples, 'image': images, 'targets': targets}

    def loss(
        self, apply: Apply, examples: Examples, extra: Any, key: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        """Returns the mean loss, plus `aux_weight` times the mean loss of each auxiliary head."""
        logits, endpoints, batch_stats = apply(examples['image'], key)

        def total(outputs: jax.Array) -> jax.Array:
            each = self.criterion.function(outputs, examples['targets'])
            return jnp.sum(each * examples['mask'])

        # Models have outputs of auxiliary heads in training mode only.
        loss = total(logits)
        objective = loss / examples['count']
        for aux in endpoints.get('aux', ()):
            objective += self.criterion.aux_weight * total(aux) / examples['count']
        return objective, Outcome({'loss': loss}, batch_stats, extra)

    def answers(
        self, outputs: jax.Array, endpoints: dict[str, Any], batch: Batch
    ) -> dict[str, jax.Array]:
        """Computes each example's loss and probabilities from the logits.

        Returns:
          `label` float32 [B, K]; `loss` float32 [B], binary cross-entropy summed over the classes;
          `probabilities` float32 [B, K].
        """
        labels = batch['label']
        outputs = outputs[:, : labels.shape[-1]]
        # Compute the loss without weights and smoothing, independently of `config.loss`.
        loss = -labels * jax.nn.log_sigmoid(outputs) - (1 - labels) * jax.nn.log_sigmoid(-outputs)
        return {
            'label': labels,
            'loss': jnp.sum(loss, axis=-1),
            'probabilities': jax.nn.sigmoid(outputs),
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        """Mean average precision and F1, macro- and micro-averaged, and the loss."""
        at = f'at a threshold of {self.threshold:g}'
        return {
            'map': Metric(macro_ap, 'mAP', 'mean of the average precisions of the classes'),
            'map_micro': Metric(micro_ap, 'micro AP', 'average precision over all decisions'),
            'f1': Metric(self._macro_f1, 'F1', f'mean of the F1 of the classes, {at}'),
            'f1_micro': Metric(self._micro_f1, 'micro F1', f'F1 over all decisions, {at}'),
            'loss': Metric(
                lambda c: c['loss'],
                'loss',
                'mean binary cross-entropy, summed over the classes',
                higher_is_better=False,
                fraction=False,
            ),
        }

    def _macro_f1(self, columns: Columns) -> float:
        """Returns the mean F1 over the classes that have examples."""
        each = f1(columns['label'], columns['probabilities'] >= self.threshold)
        # Classes without examples have no F1.
        there = columns['label'].any(axis=0)
        return float(each[there].mean()) if there.any() else math.nan

    def _micro_f1(self, columns: Columns) -> float:
        """Returns the F1 over all decisions."""
        predicted = columns['probabilities'] >= self.threshold
        return float(f1(columns['label'].reshape(-1, 1), predicted.reshape(-1, 1))[0])

    def combine(self, outputs: jax.Array, weights: jax.Array) -> jax.Array:
        """Returns logits of the mean probabilities, [M, B, K] → [B, K]."""
        weights = weights[:, None, None]
        # log p − log(1 − p) of the mean p, computed stably from log-sigmoids.
        yes = jax.nn.logsumexp(jax.nn.log_sigmoid(outputs), axis=0, b=weights)
        return yes - jax.nn.logsumexp(jax.nn.log_sigmoid(-outputs), axis=0, b=weights)

    def probabilities(self, outputs: jax.Array) -> jax.Array:
        """Returns the sigmoid, float32 [B, K]."""
        return jax.nn.sigmoid(outputs[:, : len(self.settings.class_names)])

    def named(self, probabilities: np.ndarray, top_k: int) -> np.ndarray:
        """Returns all classes whose probability reaches the threshold, most likely first.

        `top_k` is not used.
        """
        order = np.argsort(-probabilities, kind='stable')
        return order[probabilities[order] >= self.threshold]

    def check(self, source: Any) -> None:
        """Raises UserError for single-label data, a single-label loss, or too few outputs."""
        if not source.multi_label:
            raise UserError(
                f"{source.name} has one label per example, but task 'multilabel' takes several: "
                "set task.name='classification'"
            )
        check_outputs(self, source)

    def caption(self, columns: Columns, row: int) -> tuple[str, bool]:
        """Returns the predicted classes, and whether they equal the labels exactly."""
        predicted = columns['probabilities'][row] >= self.threshold
        names = [self.settings.class_names[i] for i in np.flatnonzero(predicted)]
        return ', '.join(names) or 'none', bool((predicted == (columns['label'][row] > 0)).all())

    def record(self, columns: Columns, row: int) -> dict[str, Any]:
        """Returns `labels`, `loss`, and `predictions`: all classes by decreasing probability."""
        names, probabilities = self.settings.class_names, columns['probabilities'][row]
        return {
            'labels': [names[i] for i in np.flatnonzero(columns['label'][row])],
            'loss': float(columns['loss'][row]),
            'predictions': [
                {'class': names[i], 'index': int(i), 'probability': float(probabilities[i])}
                for i in np.argsort(-probabilities, kind='stable')
            ],
        }

    def from_records(self, records: list[dict[str, Any]]) -> Columns:
        """Restores columns from records."""
        # Predictions name every class with its index, in any order.
        names = {p['class']: p['index'] for p in records[0]['predictions']}
        shape = (len(records), len(names))
        labels, probabilities = np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)
        for row, record in enumerate(records):
            labels[row, [names[name] for name in record['labels']]] = 1
            for p in record['predictions']:
                probabilities[row, p['index']] = (
                    math.nan if p['probability'] is None else p['probability']
                )
        losses = [math.nan if r['loss'] is None else r['loss'] for r in records]
        return {'label': labels, 'loss': np.array(losses), 'probabilities': probabilities}


def average_precisions(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the average precision of each class, as scikit-learn's `average_precision_score`.

    Args:
      labels: [N, K] of 0 and 1.
      probabilities: float [N, K].

    Returns:
      float64 [K]; NaN for a class without examples or with a probability that is not finite.
    """
    from sklearn.metrics import average_precision_score

    found = np.full(labels.shape[1], np.nan)
    # scikit-learn warns for a class without examples and fails on NaN.
    for k in range(labels.shape[1]):
        if labels[:, k].any() and np.isfinite(probabilities[:, k]).all():
            found[k] = average_precision_score(labels[:, k], probabilities[:, k])
    return found


def macro_ap(columns: Columns) -> float:
    """Returns the mean average precision over the classes that have examples."""
    each = average_precisions(columns['label'], columns['probabilities'])
    there = columns['label'].any(axis=0)
    return float(each[there].mean()) if there.any() else math.nan


def micro_ap(columns: Columns) -> float:
    """Returns the average precision over all decisions (example, class) at once."""
    # Treat all decisions as those of one class.
    labels, probabilities = columns['label'], columns['probabilities']
    return float(average_precisions(labels.reshape(-1, 1), probabilities.reshape(-1, 1))[0])


def f1(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns 2 · true positives / (positives + predicted positives) of each class, float64 [K].

    F1 is 0 for a class with neither positives nor predicted positives.

    Args:
      labels: [N, K] of 0 and 1.
      predicted: bool [N, K].
    """
    # Count in float64, since float32 does not represent large integers exactly.
    right = (labels * predicted).sum(axis=0, dtype=np.float64)
    both = labels.sum(axis=0, dtype=np.float64) + predicted.sum(axis=0)
    return np.divide(2 * right, both, out=np.zeros(len(both)), where=both > 0)
