"""The contract of tasks: `Task`, and the objects that it exchanges with the training step.

`config.task` names the task that a model is trained and evaluated for: `classification`,
`multilabel`, `distillation`, or a user-defined subclass of `Task` as 'package.module:Class'
(docs/extending.md).
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.core import workdir as workdir_lib
from vision.core.config_keys import check_arguments, find
from vision.core.errors import UserError
from vision.core.state import DROPOUT, MIX
from vision.core.text import described
from vision.preprocess.device import normalise
from vision.task.metrics import Columns, Metric

Batch = Mapping[str, jax.Array]
Examples = dict[str, jax.Array]


class Outcome(NamedTuple):
    """Result of a loss, apart from the objective that is differentiated.

    Attributes:
      sums: float32 scalars by name, summed over the examples without padding. The log divides them
        by the number of examples and shows them as `train/NAME`. `loss` is required.
      batch_stats: BatchNorm's running statistics after the step, as `apply` returned them.
      extra: new value of `TrainState.extra`.
      objective: float32 scalar, set by the training step for updates and optimizers.
    """

    sums: dict[str, jax.Array]
    batch_stats: Any
    extra: Any = None
    objective: Any = None


class Apply(NamedTuple):
    """Forward pass of the model at the parameters of a training step.

    Attributes:
      model: the unbound module.
      params: parameters with respect to which the objective is differentiated.
      batch_stats: BatchNorm's running statistics before the step.
      train: whether dropout and BatchNorm run in training mode; False with `freeze='backbone'`.
    """

    model: nn.Module
    params: Any
    batch_stats: Any
    train: bool = True

    def __call__(
        self,
        images: jax.Array,
        key: jax.Array,
        *,
        params: Any = None,
        batch_stats: Any = None,
        train: bool | None = None,
    ) -> tuple[jax.Array, dict[str, Any], Any]:
        """Applies the model.

        Args:
          images: float32 [B, H, W, C], as `Task.prepare` returns them.
          key: random key for dropout.
          params: parameters to use instead of the step's, such as a teacher's.
          batch_stats: running statistics to use instead of the step's. For a second call within one
            loss, pass those that the first call returned.
          train: False runs the model in evaluation mode; None uses `Apply.train`.

        Returns:
          Outputs float32 [B, K], endpoints by name, and the new running statistics.
        """
        stats = self.batch_stats if batch_stats is None else batch_stats
        # `mutable` returns the new running statistics instead of storing them.
        (outputs, endpoints), updated = self.model.apply(
            {'params': self.params if params is None else params, 'batch_stats': stats},
            images,
            train=self.train if train is None else train,
            rngs={'dropout': jax.random.fold_in(key, DROPOUT)},
            mutable=['batch_stats'],
        )
        return outputs, endpoints, updated.get('batch_stats', stats)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that every task gets from the config and the data.

    Attributes:
      class_names: K names of the data's classes.
      num_outputs: size of the model's last layer (`model.num_classes`), at least K for classifiers.
      mean, std: statistics of pixels scaled to 0 … 1, one value per channel or one for all.
      mixup, cutmix: `config.preprocess.mixup` and `.cutmix`.
      loss: `config.loss` as a dict.
    """

    class_names: tuple[str, ...]
    num_outputs: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    mixup: float = 0.0
    cutmix: float = 0.0
    loss: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Task:
    """Pure functions from a batch to the objective, and from the model's outputs to metrics.

    A subclass is also a frozen dataclass. Its fields after `settings` are keys of `config.task`. It
    must define `loss`, `answers` and `metrics`.

    Attributes:
      settings: settings from the config and the data.
      takes_views: whether training images may be [B, V, H, W, C] (`data.views`).
      report: 'module:function' that returns the task's own section of the report page for an
        evaluation; None for none.
    """

    settings: Settings
    takes_views: ClassVar[bool] = True
    report: ClassVar[str | None] = None

    def with_class_names(self, names: Sequence[str]) -> 'Task':
        """Returns the same task for data with other classes."""
        settings = dataclasses.replace(self.settings, class_names=tuple(names))
        return dataclasses.replace(self, settings=settings)

    # Training.

    def init(self, model: nn.Module, variables: Any, key: jax.Array) -> Any:
        """Returns `TrainState.extra`: arrays that the loss reads and replaces (a teacher, a queue).

        Args:
          model: the unbound module.
          variables: the initial `params` and `batch_stats`.
          key: key for random values.

        Returns:
          A PyTree of arrays, saved, restored and sharded like parameters; None for nothing. Values
          that `read` replaces may be zeros.
        """
        return None

    def read(self) -> Any:
        """Reads `TrainState.extra` from files, such as a teacher's weights, for a new run.

        A resumed run does not call it, because its checkpoint has the values.

        Returns:
          A PyTree like that of `init`, which it replaces; None to keep that of `init`.
        """
        return None

    def prepare(self, batch: Batch, key: jax.Array | None = None) -> Examples:
        """Makes the model's input and the loss's targets from a batch.

        Args:
          batch: `image` uint8 or float32 [B, H, W, C] in 0 … 255, or [B, V, H, W, C] with
            `data.views` = V; `label` int32 [B] or float32 [B, K]; `id`; `mask` float32 [B].
          key: key of the step; None in evaluation, where nothing is random.

        Returns:
          `image` float32, normalised; `label`; `mask`; and `count`, float32 scalar: the number of
          examples in the global batch without padding, at least 1. With `training.accumulate` the
          loss gets one microbatch of each array, but scalars of the whole batch. Losses that are
          divided by `count` therefore add up to the mean over the batch.
        """
        mask = batch['mask']
        return {
            'image': self.normalise(batch['image']),
            'label': batch['label'],
            'mask': mask,
            'count': jnp.maximum(jnp.sum(mask), 1.0),
        }

    def normalise(self, images: jax.Array) -> jax.Array:
        """Normalises pixels in 0 … 255, float32 of the same shape."""
        return normalise(images, self.settings.mean, self.settings.std)

    def mixed(
        self, images: jax.Array, targets: jax.Array, mask: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Applies mixup and CutMix, if configured, to images [B, H, W, C] and targets [B, K]."""
        # Import the code only if it is used.
        mixup, cutmix = self.settings.mixup, self.settings.cutmix
        if not mixup and not cutmix:
            return images, targets
        from vision.preprocess.mix import mix

        return mix(images, targets, mask, jax.random.fold_in(key, MIX), mixup, cutmix)

    def loss(
        self, apply: Apply, examples: Examples, extra: Any, key: jax.Array
    ) -> tuple[jax.Array, Outcome]:
        """Computes the objective of the examples; may call `apply` several times.

        Args:
          apply: forward pass.
          examples: the result of `prepare`, or a microbatch of it.
          extra: `TrainState.extra`.
          key: key of the step or the microbatch.

        Returns:
          The objective, float32 scalar, and the `Outcome`.
        """
        raise NotImplementedError

    # Evaluation and prediction.

    def answers(
        self, outputs: jax.Array, endpoints: dict[str, Any], batch: Batch
    ) -> dict[str, jax.Array]:
        """Computes columns for the metrics from a model's outputs, example by example, under jit.

        Args:
          outputs: float32 [B, K].
          endpoints: endpoints of the model by name; {} if several passes were averaged.
          batch: `label`, `mask` and `id` of the examples.

        Returns:
          Columns [B, …] by name, with everything that the metrics need.
        """
        raise NotImplementedError

    @property
    def metrics(self) -> dict[str, Metric]:
        """Metrics of a split by name. The first one selects the best checkpoint by default."""
        raise NotImplementedError

    def combine(self, outputs: jax.Array, weights: jax.Array) -> jax.Array:
        """Averages the outputs of several views, passes or runs; by default their weighted mean.

        Args:
          outputs: float32 [M, B, K].
          weights: float32 [M], with sum 1.

        Returns:
          Outputs float32 [B, K].
        """
        return jnp.tensordot(weights, outputs, axes=1)

    def probabilities(self, outputs: jax.Array) -> jax.Array:
        """Returns class probabilities, float32 [B, K].

        Raises:
          UserError: the task has none.
        """
        raise UserError(
            f'the task {type(self).__name__} has no class probabilities; '
            'use its features instead: experiments.search, Classifier.embed'
        )

    def named(self, probabilities: np.ndarray, top_k: int) -> np.ndarray:
        """Returns predicted classes int [n ≤ top_k], most likely first, for probabilities [K]."""
        return np.argsort(-probabilities, kind='stable')[:top_k]

    def caption(self, columns: Columns, row: int) -> tuple[str, bool]:
        """Returns a caption for TensorBoard's pictures, and whether the answer is correct."""
        return '', True

    def check(self, source: Any) -> None:
        """Raises UserError unless the data's labels and the number of outputs fit the task."""

    def record(self, columns: Columns, row: int) -> dict[str, Any]:
        """Returns an example's columns as JSON for `report/predictions_NAME.jsonl`."""
        return {name: np.asarray(v[row]).tolist() for name, v in columns.items() if name != 'id'}

    def from_records(self, records: list[dict[str, Any]]) -> Columns:
        """Restores columns from the records that `record` returned."""
        # Take every column except those that `Predictions` stores itself.
        names = [k for k in records[0] if k not in ('id', 'path', 'not_finite')]
        columns = {name: np.array([r[name] for r in records]) for name in names}
        # None stands for NaN in JSON.
        return {k: c.astype(np.float64) if c.dtype == object else c for k, c in columns.items()}


TASKS = {
    'classification': 'vision.task.classification:Classification',
    'multilabel': 'vision.task.multilabel:MultiLabel',
    'distillation': 'vision.training.distillation:Distillation',
}
_REQUIRED = ('loss', 'answers', 'metrics')


def make_task(config: Mapping[str, Any], settings: Settings) -> Task:
    """Returns the task that `config.task` names, with its arguments.

    Args:
      config: `config.task`: `name`, which is a key of `TASKS` or 'package.module:Class', and the
        arguments of the task.
      settings: settings from the rest of the config and the data.

    Raises:
      UserError: an unknown task or argument, or a class that lacks a required method.
    """
    name = config['name']
    cls: Any = find('task', name, TASKS)
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise UserError(f'task {name!r} must be a subclass of vision.task.Task')
    # A user-defined task may lack a method or take other arguments.
    missing = [m for m in _REQUIRED if getattr(cls, m, None) in (None, getattr(Task, m))]
    if missing:
        raise UserError(f'task {name!r} lacks {", ".join(missing)}: see vision.task.Task')
    # Check the arguments against the dataclass's fields.
    given = {key: value for key, value in config.items() if key != 'name'}
    own = [p for p in inspect.signature(cls).parameters if p != 'settings']
    check_arguments(f'task {name!r}', cls, own, given)
    try:
        task = cls(settings, **given)
    except TypeError as e:
        raise UserError(f'task {name!r} cannot be made: {e}') from None
    _check_own(task)
    return task


def _check_own(task: Task) -> None:
    """Raises UserError unless a task's methods and metrics follow the contract."""
    name = type(task).__name__
    # Check that each method accepts the arguments of the base class's method.
    for method, ours in inspect.getmembers(Task, inspect.isfunction):
        if method.startswith('_'):
            continue
        _, *parameters = inspect.signature(ours).parameters
        try:
            inspect.signature(getattr(task, method)).bind(*parameters)
        except TypeError as e:
            raise UserError(f'{name}.{method} must take ({", ".join(parameters)}): {e}') from None
    # Metrics must be a non-empty dict of `Metric`.
    metrics = task.metrics
    if not isinstance(metrics, dict) or not metrics:
        raise UserError(f'{name}.metrics must be a dict of metrics, not {metrics!r:.60}')
    for key, metric in metrics.items():
        if not isinstance(metric, Metric) or not callable(metric.of):
            raise UserError(f'{name}.metrics: {key!r} must be a vision.task.Metric of a function')


def prepared(task: Task, batch: Batch, key: jax.Array | None = None) -> Examples:
    """Returns `task.prepare(batch, key)`; raises UserError if the result is invalid."""
    examples = task.prepare(batch, key)
    if not isinstance(examples, dict) or not {'image', 'mask'} <= set(examples):
        raise UserError(
            f"{type(task).__name__}.prepare must return a dict with 'image' and 'mask', "
            f'not {described(examples)}'
        )
    return examples


def task_of(config: Any, class_names: Sequence[str], num_outputs: int) -> Task:
    """Returns the task of a run.

    Args:
      config: the whole config of the run.
      class_names: names of the data's classes.
      num_outputs: size of the model's last layer.

    Raises:
      UserError: as in `make_task`.
    """
    preprocess = config.preprocess
    settings = Settings(
        class_names=tuple(class_names),
        num_outputs=num_outputs,
        mean=tuple(preprocess.mean),
        std=tuple(preprocess.std),
        mixup=preprocess.mixup,
        cutmix=preprocess.cutmix,
        loss=dict(config.loss.items()),
    )
    return make_task(config.task, settings)


def read_task(workdir: Path) -> Task:
    """Reads the task of a run from its workdir, without building the model or opening the data."""
    # Classes are recorded in `dataset.json`; `num_classes` may exceed their number.
    config = workdir_lib.read_config(workdir)
    names = workdir_lib.read_json(workdir, 'dataset.json')['class_names']
    return task_of(config, names, config.model.get('num_classes', len(names)))
