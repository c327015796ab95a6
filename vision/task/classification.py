"""Single-label classification: top-1 and top-5 accuracy, loss and calibration."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError
from vision.task import metrics
from vision.task.base import Apply, Batch, Examples, Outcome, Task
from vision.task.losses import Criterion, make_criterion
from vision.task.metrics import Columns, Metric

TOP = 5  # number of most likely classes that the answers keep


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Classification with one of K classes per example.

    The loss is `config.loss`. Mixup and CutMix mix images and labels if the config enables them.
    """

    takes_views = False
    report = 'vision.evaluation.report.classification:section'

    @functools.cached_property
    def criterion(self) -> Criterion:
        """The loss, with label smoothing, class weights and the weight of auxiliary heads."""
        return make_criterion(self.settings.loss, self.settings.num_outputs)

    def prepare(self, batch: Batch, key: jax.Array | None = None) -> Examples:
        """Adds `targets` and `total_weight` to the examples, unless `key` is None.

        `targets` are float32 [B, K], one-hot or mixed. `total_weight` is the sum of the examples'
        class weights, a scalar.
        """
        examples = super().prepare(batch, key)
        if key is None:
            return examples
        # Targets exist in training only.
        targets = jax.nn.one_hot(batch['label'], self.settings.num_outputs)
        images, targets = self.mixed(examples['image'], targets, batch['mask'], key)
        total = self.criterion.total_weight(targets, batch['mask'])
        return {**examples, 'image': images, 'targets': targets, 'total_weight': total}

    def loss(
        self, apply: Apply, examples: Examples, extra: Any, key: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        """Returns the objective of `label_loss`, with one forward pass."""
        logits, endpoints, batch_stats = apply(examples['image'], key)
        objective, sums = self.label_loss(logits, endpoints, examples)
        return objective, Outcome(sums, batch_stats, extra)

    def label_loss(
        self, logits: jax.Array, endpoints: dict[str, Any], examples: Examples
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the weighted mean of the criterion over the batch, plus the auxiliary losses.

        The loss of each auxiliary head is multiplied by `aux_weight`. The sums are `loss` (with
        class weights, `count` times the weighted mean) and `top1`, the number of correct
        predictions; a mixed label counts as the class with the largest target.

        Args:
          logits: float32 [B, K].
          endpoints: endpoints of the model by name.
          examples: the result of `prepare`, or a microbatch of it.

        Returns:
          The objective, float32 scalar, and the sums over the examples by name.
        """
        targets, mask, total = examples['targets'], examples['mask'], examples['total_weight']
        loss = jnp.sum(self.criterion(logits, targets) * mask)
        objective = loss / total
        # Models have outputs of auxiliary heads in training mode only.
        for aux in endpoints.get('aux', ()):
            aux_loss = jnp.sum(self.criterion(aux, targets) * mask) / total
            objective += self.criterion.aux_weight * aux_loss
        # Count correct predictions for the log.
        right = jnp.sum((logits.argmax(-1) == targets.argmax(-1)) * mask)
        return objective, {'loss': loss * (examples['count'] / total), 'top1': right}

    def answers(
        self, outputs: jax.Array, endpoints: dict[str, Any], batch: Batch
    ) -> dict[str, jax.Array]:
        """Computes each example's loss, rank and most likely classes from the logits.

        Returns:
          `label` int32 [B]; `loss` float32 [B], −log of the probability of the correct class;
          `rank` int32 [B], the number of classes ranked before the correct one; `squared_error`
          float32 [B], the sum over classes of (probability − one-hot)²; `top_classes` int32 and
          `top_probabilities` float32 [B, min(5, K)], most likely first. Equal logits are ranked by
          index as in argmax, and NaN comes before all numbers.
        """
        outputs = outputs[:, : len(self.settings.class_names)]  # ignore surplus outputs
        label = batch['label'][:, None]
        right = jnp.take_along_axis(outputs, label, axis=-1)
        # Compute the rank of the correct class without sorting: count the classes ahead of it.
        index = jnp.arange(outputs.shape[-1])
        ahead = ~(outputs <= right) | ((outputs == right) & (index < label))
        probabilities = jax.nn.softmax(outputs)
        # Find the most likely classes in the order of `rank`: map NaN to infinity and -0 to 0.
        # Sorting all of 1,000 classes would take 20 to 60 times as long on a CPU.
        comparable = jnp.where(outputs == 0, 0.0, jnp.where(jnp.isnan(outputs), jnp.inf, outputs))
        top = jax.lax.top_k(comparable, min(TOP, outputs.shape[-1]))[1]
        # Σ (p − onehot)² = Σ p² − 2 p_correct + 1.
        right_probability = jnp.take_along_axis(probabilities, label, axis=-1)[:, 0]
        return {
            'label': batch['label'],
            'loss': jax.nn.logsumexp(outputs, axis=-1) - right[:, 0],
            'rank': jnp.sum(ahead, axis=-1),
            'squared_error': jnp.sum(probabilities**2, axis=-1) - 2 * right_probability + 1,
            'top_classes': top,
            'top_probabilities': jnp.take_along_axis(probabilities, top, axis=-1),
        }

    @property
    def metrics(self) -> dict[str, Metric]:
        """Top-1, top-5, loss, balanced accuracy, expected calibration error and Brier score."""
        return METRICS

    def combine(self, outputs: jax.Array, weights: jax.Array) -> jax.Array:
        """Returns the log of the mean probabilities, which are valid logits: [M, B, K] → [B, K]."""
        # Compute log Σ w · softmax stably from log-softmax.
        return jax.nn.logsumexp(jax.nn.log_softmax(outputs), axis=0, b=weights[:, None, None])

    def probabilities(self, outputs: jax.Array) -> jax.Array:
        """Returns the softmax, float32 [B, K]."""
        return jax.nn.softmax(outputs[:, : len(self.settings.class_names)])

    def check(self, source: Any) -> None:
        """Raises UserError for multi-label data or a model with too few outputs."""
        if source.multi_label:
            raise UserError(
                f"{source.name} has several labels per example, but task 'classification' takes one: "
                "set task.name='multilabel' and loss.name='sigmoid_cross_entropy'"
            )
        check_outputs(self, source)

    def caption(self, columns: Columns, row: int) -> tuple[str, bool]:
        """Returns the class if the prediction is correct, else 'prediction, not class'."""
        names, label = self.settings.class_names, int(columns['label'][row])
        answer = int(columns['top_classes'][row, 0])
        # A model may have more outputs than the data have classes.
        other = names[answer] if answer < len(names) else str(answer)
        return (names[label], True) if label == answer else (f'{other}, not {names[label]}', False)

    def record(self, columns: Columns, row: int) -> dict[str, Any]:
        """Returns `label`, `class`, `rank`, `loss` and `predictions`, the most likely classes."""
        names = self.settings.class_names
        label = int(columns['label'][row])
        top = zip(columns['top_classes'][row], columns['top_probabilities'][row], strict=True)
        return {
            'label': label,
            'class': names[label],
            'rank': int(columns['rank'][row]),
            'loss': float(columns['loss'][row]),
            'predictions': [
                {'class': names[i], 'index': int(i), 'probability': float(p)} for i, p in top
            ],
        }

    def from_records(self, records: list[dict[str, Any]]) -> Columns:
        """Restores columns from records; `squared_error` is NaN, since records do not have it."""
        tops = [[(p['index'], _nan(p['probability'])) for p in r['predictions']] for r in records]
        top = np.array(tops, np.float64).reshape(len(records), -1, 2)
        # Records have no `squared_error`, since only the most likely classes are written.
        return {
            'label': np.array([r['label'] for r in records], np.int32),
            'loss': np.array([_nan(r['loss']) for r in records]),
            'rank': np.array([r['rank'] for r in records], np.int32),
            'squared_error': np.full(len(records), np.nan),
            'top_classes': top[..., 0].astype(np.int32),
            'top_probabilities': top[..., 1],
        }


def check_outputs(task: Any, source: Any) -> None:
    """Raises UserError unless the loss is valid and the model has an output for each class."""
    outputs, classes = task.settings.num_outputs, len(source.class_names)
    if outputs < classes:
        raise UserError(f'model.num_classes={outputs}: {source.name} has {classes} classes')
    _ = task.criterion  # raises for an invalid loss


def correct(columns: Columns) -> np.ndarray:
    """Returns bool [N]: whether the correct class is ranked first."""
    return columns['rank'] < 1


def confidence(columns: Columns) -> np.ndarray:
    """Returns float [N]: the probability of the predicted class."""
    return columns['top_probabilities'][:, 0]


def _top5(columns: Columns) -> np.ndarray | None:
    """Returns bool [N], or None with fewer than five classes."""
    return columns['rank'] < TOP if columns['top_classes'].shape[1] >= TOP else None


# The first metric selects the best checkpoint by default.
METRICS = {
    'top1': Metric(correct, 'top-1', 'the most likely class is correct'),
    'top5': Metric(_top5, 'top-5', 'the correct class is among the five most likely'),
    'loss': Metric(
        lambda c: c['loss'],
        'loss',
        'mean −log of the probability of the correct class',
        higher_is_better=False,
        fraction=False,
    ),
    'balanced_accuracy': Metric(
        lambda c: metrics.balanced_accuracy(c['label'], correct(c)),
        'balanced accuracy',
        'mean of the recalls of the classes',
        weighted=lambda c: metrics.weighted_balanced_accuracy(c['label'], correct(c)),
        in_tables=False,
    ),
    'ece': Metric(
        lambda c: metrics.expected_calibration_error(confidence(c), correct(c)),
        'calibration error',
        'expected calibration error: mean gap between confidence and accuracy',
        higher_is_better=False,
        weighted=lambda c: metrics.weighted_calibration_error(confidence(c), correct(c)),
        biased=True,
        in_tables=False,
    ),
    'brier': Metric(
        lambda c: c['squared_error'],
        'Brier score',
        'mean squared error of the probabilities',
        higher_is_better=False,
        fraction=False,
        in_tables=False,
    ),
}


def _nan(value: float | None) -> float:
    """Returns NaN for None, which stands for NaN in JSON."""
    return float('nan') if value is None else value
