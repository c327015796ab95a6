"""The objects that a config becomes before the first step: data, model, optimizer, and the run's length."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision.core import config as config_lib
from vision.core import durations
from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.data import registry as data
from vision.data.source import NoSplitError, Source
from vision.evaluation.answers import make_step
from vision.models.base import check_contract, init_variables
from vision.models.registry import create_model
from vision.preprocess import inputs
from vision.preprocess.device import check_channels
from vision.task.base import Task, task_of
from vision.task.metrics import Selection, check_metrics
from vision.training.optimizer import (
    BACKBONE,
    RateFactors,
    WeightDecay,
    check_optimizer,
    check_pattern,
    make_optimizer,
)
from vision.training.schedules import Averaging, make_schedule, peak_rate
from vision.training.step import Recipe, make_update, trace


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run, resolved.

    Attributes:
      config: as it is recorded: checked, complete, with `training.polyak_from` in steps.
      mesh: of all devices.
      train: the training split.
      validation: the split that models are selected on, or None.
      test: the split that is reported once, or None.
      input_shape: (H, W, C) of what the model is fed.
      loading: how the training split is fed.
      eval_ops: the op string of evaluation.
      eval_batch_size: for each device.
      own_statistics: whether the training split's mean and deviation replace those of the config.
      init_from: weights to start from, or None.
      model_name: in the registry, or 'package.module:Class'.
      recipe: of the training step.
      selection: the order of evaluations.
      total_steps: of the run.
      stop_step: where it stops this time, ≤ total_steps.
      patience: in steps, how long nothing better may be seen before it ends; None is for ever.
      eval_every, checkpoint_every, log_every: at which steps that is due.
      keep: how many of the last checkpoints are kept.
    """

    config: ConfigDict
    mesh: Mesh
    train: Source
    validation: Source | None
    test: Source | None
    input_shape: tuple[int, int, int]
    loading: inputs.Loading
    eval_ops: str
    eval_batch_size: int
    own_statistics: bool
    init_from: str | None
    model_name: str
    recipe: Recipe
    selection: Selection
    total_steps: int
    stop_step: int
    patience: Fraction | None
    eval_every: durations.Every
    checkpoint_every: durations.Every
    log_every: durations.Every
    keep: int

    @property
    def model(self) -> nn.Module:
        """The model, unbound."""
        return self.recipe.model

    @property
    def task(self) -> Task:
        """The task that it is trained for."""
        return self.recipe.task

    @property
    def sources(self) -> dict[str, Source]:
        """The splits that there are, by name."""
        splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
        return {name: source for name, source in splits.items() if source is not None}

    @property
    def dataset(self) -> dict[str, Any]:
        """The content of `dataset.json`: for prediction, and for comparison when a run goes on."""
        shape = None if self.train.encoded else self.train.image_shape
        return {
            'class_names': list(self.train.class_names),
            # Of images as the source has them; null where each has its own.
            'image_shape': None if shape is None else list(shape),
            'rules': self.config.data.rules,  # for the order of classes and the splits
            'input_shape': list(self.input_shape),
            'num_examples': {name: source.num_examples for name, source in self.sources.items()},
            'mean': list(self.task.settings.mean),
            'std': list(self.task.settings.std),
        }


def setup(config: ConfigDict) -> Setup:
    """Checks and resolves a config, opens its data, builds what the loop needs; compiles nothing.

    Raises:
      UserError: anything in it that makes no sense, or data that is not there.
    """
    config = config_lib.resolve(config)
    training = config.training
    mesh = mesh_lib.make_mesh()
    mesh_lib.check_batch_size(training.batch_size, mesh, 'training.batch_size', training.accumulate)
    train, validation, test = _open(config.data)
    if config.schedule.name == 'plateau' and validation is None:
        raise UserError('schedule.name=plateau needs a validation split: data.validation')
    if training.patience is not None and validation is None:
        raise UserError('training.patience: this data has no validation split to judge by')
    fed = _input_shapes(config, train)

    # Durations in steps: the training step knows no epochs.
    def steps_in(key: str) -> Fraction:
        sizes = training.batch_size, train.num_examples
        return durations.steps_in(training[key], *sizes, f'training.{key}')

    def to_steps(text: str, key: str) -> int:
        return durations.to_steps(text, training.batch_size, train.num_examples, key)

    total_steps = stop_step = to_steps(training.duration, 'training.duration')
    if training.stop_after is not None:
        stop_step = min(total_steps, to_steps(training.stop_after, 'training.stop_after'))
    if training.polyak_from is not None:
        training.polyak_from = _polyak_start(training.polyak_from, total_steps, to_steps)

    model = create_model(**{'num_classes': len(train.class_names)} | config.model.to_dict())
    recipe = make_recipe(config, model, train.class_names, total_steps, to_steps)
    _check_task(recipe, train, config.data.views)
    for shape in fed:
        check_contract(model, shape)
    shapes = jax.eval_shape(lambda: init_variables(model, fed[0], jax.random.key(0)))
    if ':' in config.task.name or ':' in config['update'].name:
        views = (config.data.views,) if config.data.views > 1 else ()
        trace(recipe, fed[0], mesh, _batch_of(train, training.batch_size, (*views, *fed[-1])))
        evaluated = _batch_of(train, config.evaluation.batch_size * mesh.size, fed[0])
        columns = jax.eval_shape(make_step(recipe.task, model, mesh), shapes, evaluated)
        check_metrics(recipe.task, columns)
    selection = Selection(recipe.task, training.best_by)
    if training.best_by is not None:
        step = make_step(recipe.task, model, mesh)
        columns = jax.eval_shape(step, shapes, _batch_of(train, mesh.size, fed[0]))
        _check_selection(selection, columns, train)
    recipe.factors.check(shapes['params'])
    optimizer = config.optimizer.to_dict()
    if config.weight_decay or optimizer.get('weight_decay'):
        check_pattern('weight_decay_pattern', config.weight_decay_pattern, shapes['params'])
    check_optimizer(optimizer, recipe.optimizer, shapes['params'])
    return Setup(
        config=config,
        mesh=mesh,
        train=train,
        validation=validation,
        test=test,
        input_shape=fed[0],
        loading=loading_of(config),
        eval_ops=config.preprocess.eval,
        eval_batch_size=config.evaluation.batch_size,
        own_statistics=config.preprocess.normalise == 'dataset',
        init_from=config.init_from,
        model_name=config.model.name,
        recipe=recipe,
        selection=selection,
        total_steps=total_steps,
        stop_step=stop_step,
        patience=None if training.patience is None else steps_in('patience'),
        eval_every=durations.Every(steps_in('eval_every')),
        checkpoint_every=durations.Every(steps_in('checkpoint_every')),
        log_every=durations.Every(steps_in('log_every')),
        keep=training.keep,
    )


def _check_selection(selection: Selection, columns: Mapping[str, Any], source: Source) -> None:
    """Raises UserError if the metric has no value whatever the answers are, as top-5 of four classes."""
    zeros = {name: np.zeros(column.shape, column.dtype) for name, column in columns.items()}
    value: Any = 0.0
    with suppress(Exception):  # of a user's metric: no model gives such answers
        value = selection.metric.of(zeros)
    if value is None:
        raise UserError(
            f'training.best_by: {selection.name!r} is no number on {source.name}; select by another metric'
        )


def _batch_of(source: Source, size: int, image_shape: Sequence[int]) -> dict[str, Any]:
    """The shapes of a batch."""
    label = (size, len(source.class_names)) if source.multi_label else (size,)
    of = jax.ShapeDtypeStruct
    return {
        'image': of((size, *image_shape), jnp.float32),
        'label': of(label, jnp.float32 if source.multi_label else jnp.int32),
        'id': of((size,), jnp.int32),
        'mask': of((size,), jnp.float32),
    }


def _open(settings: Mapping[str, Any]) -> tuple[Source, Source | None, Source | None]:
    """Opens the training split, and validation and test where there are such splits.

    Raises:
      UserError: one cannot be opened, has other classes than train, or too many images that cannot be read.
    """
    train = data.load(settings, 'train')
    validation, test = (_load_optional(settings, split) for split in ('validation', 'test'))
    for split in (validation, test):
        if split is not None and split.class_names != train.class_names:
            raise UserError(
                f'{split.name} has {len(split.class_names)} classes and {train.name} has '
                f'{len(train.class_names)}, or they have other names'
            )
    if train.paths is not None:
        from vision.preprocess.unreadable import look_before_training

        look_before_training(train, validation, test, settings['max_corrupt'])
    return train, validation, test


def _load_optional(settings: Mapping[str, Any], split: str) -> Source | None:
    try:
        return data.load(settings, split)
    except NoSplitError:
        return None


def _input_shapes(config: Any, train: Source) -> list[tuple[int, int, int]]:
    """The shape (H, W, C) that the model is fed in evaluation and, where that differs, in training.

    Raises:
      UserError: ops or protocols that do not fit the data, or means for other channels.
    """
    preprocess = config.preprocess
    for ops in (preprocess.train, preprocess.eval):
        inputs.check(train, ops)
    shape = inputs.input_shape(train, preprocess.eval)
    check_channels(preprocess.mean, preprocess.std, shape[-1])
    for entry in config.evals.values():
        from vision.evaluation.protocols import passes

        passes(config_lib.complete_eval(entry).protocol, preprocess.eval, shape[0])
    if preprocess.train == preprocess.eval:
        return [shape]
    return list(dict.fromkeys([shape, inputs.input_shape(train, preprocess.train)]))


def _polyak_start(text: str, total_steps: int, to_steps: Callable[[str, str], int]) -> str:
    """The duration `training.polyak_from` in steps: the training step knows no epochs."""
    start = to_steps(text, 'training.polyak_from')
    if start >= total_steps:
        raise UserError(
            f'training.polyak_from={text!r} is {start} steps; the whole run has {total_steps}: '
            'begin earlier, or lengthen training.duration'
        )
    return f'{start} steps'


def _check_task(recipe: Recipe, train: Source, views: int) -> None:
    """Raises UserError unless the task takes this data, its views and the plateau's metric."""
    name = type(recipe.task).__name__
    recipe.task.check(train)
    if views > 1 and not recipe.task.takes_views:
        raise UserError(f'data.views={views}: the task {name} takes one view of an image')
    if recipe.plateau and recipe.plateau.metric == 'loss' and 'loss' not in recipe.task.metrics:
        raise UserError(
            f"schedule.metric='loss': the task {name} has no such metric; leave it out to "
            'follow what the run is selected by'
        )


def loading_of(config: Any) -> inputs.Loading:
    """Reads how a config feeds its training split."""
    data = config.data
    return inputs.Loading(
        ops=config.preprocess.train,
        batch_size=config.training.batch_size,
        seed=config.seed,
        repeats=data.repeats,
        views=data.views,
        cache=data.cache,
        max_corrupt=data.max_corrupt,
    )


def make_recipe(
    config: ConfigDict,
    model: nn.Module,
    class_names: Sequence[str],
    total_steps: int,
    to_steps: Callable[[str, str], int] = lambda text, key: durations.to_steps(text, 1, 1, key),
) -> Recipe:
    """Builds what a config says of the training step.

    Args:
      config: checked and resolved.
      model: unbound.
      class_names: of the data.
      total_steps: of the run.
      to_steps: converts a duration and its key's name to steps; not needed for durations in steps.

    Raises:
      UserError: an unknown name, or an argument or value that does not fit.
    """
    training, start = config.training, config.training.polyak_from
    lr = peak_rate(config.optimizer.lr, config.optimizer.lr_for_batch, training.batch_size)
    polyak_from = None if start is None else to_steps(start, 'training.polyak_from')
    factors, plateau = RateFactors(config.freeze, config.lr_factors), None
    if config.schedule.name == 'plateau':
        from vision.training.plateau import Plateau

        plateau = Plateau.of(config.schedule)
    return Recipe(
        model=model,
        task=task_of(config, class_names, model.num_classes),
        update=make_update(config['update']),
        optimizer_for=functools.partial(
            make_optimizer,
            config.optimizer.to_dict(),
            decay=WeightDecay(
                config.weight_decay, config.weight_decay_pattern, config.weight_decay_form
            ),
            rates=factors,
            plateau=plateau,
            seed=config.seed,
        ),
        schedule=make_schedule(config.schedule.to_dict(), lr, total_steps, to_steps),
        averaging=Averaging(training.ema_decay, polyak_from),
        factors=factors,
        plateau=plateau,
        frozen=config.freeze == BACKBONE,
        accumulate=training.accumulate,
        shard=training.shard,
        seed=config.seed,
    )


def normalised(run: Setup, dataset: Mapping[str, Any] | None = None) -> Setup:
    """The run with the training split's mean and deviation, if `preprocess.normalise` asks for them.

    Args:
      run: as `setup` returns it.
      dataset: `dataset.json` of the run that goes on; without it the statistics are computed,
        which reads the training split once.

    Raises:
      UserError: the training split has no image, or none but of one colour.
    """
    if not run.own_statistics:
        return run
    if dataset is None:
        from vision.preprocess.statistics import channel_statistics

        found = channel_statistics(run.train, run.eval_ops, run.eval_batch_size, run.mesh)
    else:
        found = tuple(dataset['mean']), tuple(dataset['std'])
    settings = dataclasses.replace(run.task.settings, mean=found[0], std=found[1])
    task = dataclasses.replace(run.task, settings=settings)
    return dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, task=task))
