"""Setup of a run: turns a config into data, model, optimizer and the run's length in steps."""

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
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision.core import config as config_lib
from vision.core import durations
from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.data import registry as data
from vision.data.source import NoSplitError, Source
from vision.evaluation.answers import make_step
from vision.models.base import check_contract
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
    """A fully resolved run, with durations in steps; later code reads no settings from the config.

    Attributes:
      config: the config that is recorded: checked, complete, with `training.polyak_from` in steps.
      mesh: all devices.
      train: the training split.
      validation: the split that selects the best checkpoint, or None.
      test: the split that is evaluated once, at the end, or None.
      input_shape: (H, W, C) of the model's input.
      loading: how the training split is read and batched.
      eval_ops: op string of the evaluation preprocessing.
      eval_batch_size: evaluation batch size per device.
      own_statistics: whether to normalise by the training split's mean and standard deviation
        instead of the config's.
      init_from: source of pretrained weights, or None.
      model_name: name in the registry, or 'package.module:Class'.
      recipe: everything that the training step is built from.
      selection: orders evaluations to select the best checkpoint.
      total_steps: length of the run.
      stop_step: last step of this invocation, at most `total_steps`.
      patience: early stopping, in steps without a better evaluation; None to disable it.
      eval_every, checkpoint_every, log_every: intervals in steps.
      steps_per_call: maximum number of steps in one call of the device; None for the backend's.
      keep: number of recent checkpoints to keep.
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
    steps_per_call: int | None
    keep: int

    @property
    def model(self) -> nn.Module:
        """The model, unbound."""
        return self.recipe.model

    @property
    def task(self) -> Task:
        """The task that the model is trained for."""
        return self.recipe.task

    @property
    def sources(self) -> dict[str, Source]:
        """The existing splits by name."""
        splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
        return {name: source for name, source in splits.items() if source is not None}

    @property
    def dataset(self) -> dict[str, Any]:
        """Content of `dataset.json`, which prediction reads and a resumed run is compared with."""
        # Encoded images (JPEG, PNG) may differ in size.
        shape = None if self.train.encoded else self.train.image_shape
        return {
            'class_names': list(self.train.class_names),
            # The shape of the source's images; null if it varies.
            'image_shape': None if shape is None else list(shape),
            'rules': self.config.data.rules,  # version of the class order and the splits
            'input_shape': list(self.input_shape),
            'num_examples': {name: source.num_examples for name, source in self.sources.items()},
            'mean': list(self.task.settings.mean),
            'std': list(self.task.settings.std),
        }


def setup(config: ConfigDict) -> Setup:
    """Checks and resolves a config, opens its data and builds the objects that the loop needs.

    Model, task and optimizer are traced with abstract shapes. Nothing is compiled.

    Raises:
      UserError: a value in the config is invalid, or the data are missing.
    """
    config = config_lib.resolve(config)
    training = config.training
    # Open the data and derive the shape of the model's input.
    mesh = mesh_lib.make_mesh()
    mesh_lib.check_batch_size(training.batch_size, mesh, 'training.batch_size', training.accumulate)
    train, validation, test = _open(config.data)
    if config.schedule.name == 'plateau' and validation is None:
        raise UserError('schedule.name=plateau needs a validation split: data.validation')
    if training.patience is not None and validation is None:
        raise UserError('training.patience needs a validation split: data.validation')
    input_shapes = _input_shapes(config, train)
    input_shape, train_shape = input_shapes[0], input_shapes[-1]

    # Convert all durations to steps.
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

    # Build the model and the recipe of the training step.
    model = create_model(**{'num_classes': len(train.class_names)} | config.model.to_dict())
    recipe = make_recipe(config, model, train.class_names, total_steps, to_steps, input_shape)
    _check_task(recipe, train, config.data.views)
    # Trace the model, a user-defined task or update, a task that adds to the state, and the metric
    # to select by, so that mistakes show before anything is compiled.
    # The models of the registry return the same kinds of values in both modes.
    modes = (True, False) if ':' in config.model.name else (True,)
    shapes, *_ = [check_contract(model, shape, modes) for shape in input_shapes]
    if getattr(model, 'dense_evaluation', False):  # evaluation takes other sizes than training
        check_contract(model, input_shape, (False,))
    adds_state = type(recipe.task).init is not Task.init
    if ':' in config.task.name or ':' in config['update'].name or adds_state:
        views = (config.data.views,) if config.data.views > 1 else ()
        batch = _batch_of(train, training.batch_size, (*views, *train_shape))
        trace(recipe, input_shape, mesh, batch)
        evaluated = _batch_of(train, config.evaluation.batch_size * mesh.size, input_shape)
        columns = jax.eval_shape(make_step(recipe.task, model, mesh), shapes, evaluated)
        check_metrics(recipe.task, columns)
    selection = Selection(recipe.task, training.best_by)
    if training.best_by is not None:
        step = make_step(recipe.task, model, mesh)
        columns = jax.eval_shape(step, shapes, _batch_of(train, mesh.size, input_shape))
        _check_selection(selection, columns, train)
    # Check parameter patterns and the optimizer against the shapes of the parameters.
    recipe.factors.check(shapes['params'])
    if config.init_from is None and BACKBONE in (config.freeze, *dict(config.lr_factors)):
        logging.warning(
            "freeze or lr_factors holds back 'backbone', which starts from random values: to train "
            'from scratch, set --config.freeze=None and --config.lr_factors="()"'
        )
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
        input_shape=input_shape,
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
        steps_per_call=training.steps_per_call,
        keep=training.keep,
    )


def _check_selection(selection: Selection, columns: Mapping[str, Any], source: Source) -> None:
    """Raises UserError if the metric is undefined on this data, like top-5 with four classes."""
    zeros = {name: np.zeros(column.shape, column.dtype) for name, column in columns.items()}
    value: Any = 0.0
    # A user-defined metric may fail on all-zero columns, which no model produces.
    with suppress(Exception):
        value = selection.metric.of(zeros)
    if value is None:
        raise UserError(
            f'training.best_by: {selection.name!r} is undefined on {source.name}; '
            'select by another metric'
        )


def _batch_of(source: Source, size: int, image_shape: Sequence[int]) -> dict[str, Any]:
    """Returns the shapes and dtypes of a batch."""
    label = (size, len(source.class_names)) if source.multi_label else (size,)
    array = jax.ShapeDtypeStruct
    return {
        'image': array((size, *image_shape), jnp.float32),
        'label': array(label, jnp.float32 if source.multi_label else jnp.int32),
        'id': array((size,), jnp.int32),
        'mask': array((size,), jnp.float32),
    }


def _open(settings: Mapping[str, Any]) -> tuple[Source, Source | None, Source | None]:
    """Opens the training split, and the validation and test splits if they exist.

    Raises:
      UserError: a split cannot be opened, its classes differ from the training split's, or too
        many of its images cannot be read.
    """
    train = data.load(settings, 'train')
    validation, test = (_load_optional(settings, split) for split in ('validation', 'test'))
    for split in (validation, test):
        if split is not None and split.class_names != train.class_names:
            raise UserError(
                f'the classes of {split.name} ({len(split.class_names)}) differ from those of '
                f'{train.name} ({len(train.class_names)}) in number or name'
            )
    # Find unreadable image files before a long run starts.
    if train.paths is not None:
        from vision.preprocess.unreadable import look_before_training

        look_before_training(train, validation, test, settings['max_corrupt'])
    return train, validation, test


def _load_optional(settings: Mapping[str, Any], split: str) -> Source | None:
    """Opens a split, or returns None if the data set does not have this split."""
    try:
        return data.load(settings, split)
    except NoSplitError:
        return None


def _input_shapes(config: Any, train: Source) -> list[tuple[int, int, int]]:
    """Returns the (H, W, C) of the model's input in evaluation and, if different, in training.

    Raises:
      UserError: ops or protocols do not fit the data, or `mean` and `std` have the wrong number
        of channels.
    """
    preprocess = config.preprocess
    for ops in (preprocess.train, preprocess.eval):
        inputs.check(train, ops)
    shape = inputs.input_shape(train, preprocess.eval)
    check_channels(preprocess.mean, preprocess.std, shape[-1])
    # Check the protocols of `config.evals` now, not at the end of the run.
    for entry in config.evals.values():
        from vision.evaluation.protocols import passes

        passes(config_lib.complete_eval(entry).protocol, preprocess.eval, shape[0])
    if preprocess.train == preprocess.eval:
        return [shape]
    return list(dict.fromkeys([shape, inputs.input_shape(train, preprocess.train)]))


def _polyak_start(text: str, total_steps: int, to_steps: Callable[[str, str], int]) -> str:
    """Converts `training.polyak_from` to a duration in steps."""
    start = to_steps(text, 'training.polyak_from')
    if start >= total_steps:
        raise UserError(
            f'training.polyak_from={text!r} is {start} steps, but the whole run has {total_steps}: '
            'begin earlier, or lengthen training.duration'
        )
    return f'{start} steps'


def _check_task(recipe: Recipe, train: Source, views: int) -> None:
    """Raises UserError unless the task supports the data, the views and the plateau's metric."""
    name = type(recipe.task).__name__
    recipe.task.check(train)
    if views > 1 and not recipe.task.takes_views:
        raise UserError(f'data.views={views}: the task {name} supports one view per image only')
    if recipe.plateau and recipe.plateau.metric == 'loss' and 'loss' not in recipe.task.metrics:
        raise UserError(
            f"schedule.metric='loss': the task {name} has no metric 'loss'; leave it out to "
            'follow the metric that selects the best checkpoint'
        )


def loading_of(config: Any) -> inputs.Loading:
    """Returns how the training split is read and batched, from the config."""
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
    input_shape: Sequence[int] = (),
) -> Recipe:
    """Builds the recipe of the training step from a config.

    Args:
      config: checked and resolved.
      model: the unbound module.
      class_names: names of the data's classes.
      total_steps: length of the run in steps.
      to_steps: converts a duration and its key's name to steps; may be omitted if all durations
        are in steps.
      input_shape: (H, W, C) of the model's input; only `layer_decay` needs it.

    Raises:
      UserError: an unknown name, argument or value.
    """
    training, start = config.training, config.training.polyak_from
    # Learning rate, averaging, and factors by parameter.
    lr = peak_rate(config.optimizer.lr, config.optimizer.lr_for_batch, training.batch_size)
    polyak_from = None if start is None else to_steps(start, 'training.polyak_from')
    layers: tuple = ()
    if config.layer_decay:
        from vision.training.layer_decay import layer_factors

        layers = layer_factors(model, input_shape, config.layer_decay)
    factors, plateau = RateFactors(config.freeze, config.lr_factors, layers), None
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
    """Sets mean and standard deviation to the data's if `preprocess.normalise='dataset'`.

    Args:
      run: the result of `setup`.
      dataset: `dataset.json` of a resumed run, which has the statistics. If None, the statistics
        are computed in one pass over the training split.

    Raises:
      UserError: the training split is empty or all its pixels have the same value.
    """
    if not run.own_statistics:
        return run
    # A new run computes the statistics; a resumed one has recorded them.
    if dataset is None:
        from vision.preprocess.statistics import channel_statistics

        found = channel_statistics(run.train, run.eval_ops, run.eval_batch_size, run.mesh)
    else:
        found = tuple(dataset['mean']), tuple(dataset['std'])
    # The task normalises the images, so it gets the new values.
    settings = dataclasses.replace(run.task.settings, mean=found[0], std=found[1])
    task = dataclasses.replace(run.task, settings=settings)
    return dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, task=task))
