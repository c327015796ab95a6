"""What a config turns into before the first step: data, model, optimizer, and the run's length."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision import data
from vision.core import config as config_lib
from vision.core import durations
from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.data.source import NoSplitError, Source
from vision.models import create_model
from vision.models.base import check_contract, init_variables
from vision.preprocess import inputs
from vision.preprocess.device import check_channels
from vision.task.base import Selection, Task, task_of
from vision.training import optimizer as optimizer_lib
from vision.training import patterns
from vision.training.averages import Averaging, make_averaging
from vision.training.optimizer import WeightDecay, make_optimizer
from vision.training.patterns import RateFactors
from vision.training.plateau import Plateau, make_plateau
from vision.training.schedules import make_schedule, peak_rate
from vision.training.update import Update, make_update


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a training step is built of.

    Attributes:
      model: unbound.
      task: what is optimised.
      update: from the examples to the optimizer's gradient.
      optimizer: optax's.
      schedule: the learning rate by step.
      averaging: of the parameters.
      factors: of the learning rate by parameter; 0 where one is frozen.
      plateau: the schedule's settings, if it is told of evaluations.
      frozen: whether dropout and BatchNorm run as in evaluation.
      accumulate: the parts that a batch is computed in.
      shard: 'data' or 'fsdp'.
      seed: of the parameters and the steps' randomness.
    """

    model: nn.Module
    task: Task
    update: Update
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    averaging: Averaging
    factors: RateFactors
    plateau: Plateau | None
    frozen: bool
    accumulate: int
    shard: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run, resolved.

    Attributes:
      config: checked; nothing in it is missing, and `training.polyak_from` is in steps.
      mesh: of all devices.
      train: the training split.
      validation: the split that models are selected on, or None.
      test: the split that is reported once, or None.
      input_shape: (H, W, C) of what the model is fed.
      loading: how the training split is fed.
      recipe: of the training step.
      selection: the order of evaluations.
      total_steps: of the run.
      stop_step: where it stops this time, ≤ total_steps.
      patience: in steps, how long nothing better may be seen before it ends; None is for ever.
      eval_every, checkpoint_every, log_every: at which steps that is due.
    """

    config: ConfigDict
    mesh: Mesh
    train: Source
    validation: Source | None
    test: Source | None
    input_shape: tuple[int, int, int]
    loading: inputs.Loading
    recipe: Recipe
    selection: Selection
    total_steps: int
    stop_step: int
    patience: Fraction | None
    eval_every: durations.Every
    checkpoint_every: durations.Every
    log_every: durations.Every

    @property
    def model(self) -> nn.Module:
        """The model, unbound."""
        return self.recipe.model

    @property
    def task(self) -> Task:
        """The task that it is trained for."""
        return self.recipe.task

    @property
    def dataset(self) -> dict[str, Any]:
        """What prediction must know of the data: `dataset.json`."""
        shape = None if self.train.encoded else self.train.image_shape
        splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
        return {
            'class_names': list(self.train.class_names),
            # Of images as the source has them; null where each has its own.
            'image_shape': None if shape is None else list(shape),
            'input_shape': list(self.input_shape),
            'num_examples': {k: v.num_examples for k, v in splits.items() if v is not None},
            'mean': list(self.config.preprocess.mean),
            'std': list(self.config.preprocess.std),
        }


def setup(config: ConfigDict) -> Setup:
    """Checks and resolves a config, opens its data, builds what the loop needs; compiles nothing.

    Raises:
      UserError: anything in it that makes no sense, or data that is not there.
    """
    config = config_lib.resolve(config)
    mesh = mesh_lib.make_mesh()
    mesh_lib.check_batch_size(
        config.training.batch_size, mesh, 'training.batch_size', config.training.accumulate
    )
    train = data.load(config.data, 'train')
    validation, test = (_load_optional(config.data, split) for split in ('validation', 'test'))
    for split in (validation, test):
        if split is not None and split.class_names != train.class_names:
            raise UserError(
                f'{split.name} has {len(split.class_names)} classes and {train.name} has '
                f'{len(train.class_names)}, or they have other names'
            )

    sizes = (config.training.batch_size, train.num_examples)

    def to_steps(text: str, key: str) -> int:
        return durations.to_steps(text, *sizes, key)

    def every(key: str) -> durations.Every:
        return durations.Every(durations.steps_in(config.training[key], *sizes, key))

    total_steps = to_steps(config.training.duration, 'training.duration')
    if config.schedule.name == 'plateau' and validation is None:
        raise UserError('schedule.name=plateau needs a validation split: data.validation')
    config = _resolve_polyak(config, total_steps, to_steps)
    stop, patience = config.training.stop_after, config.training.patience
    if patience is not None and validation is None:
        raise UserError('training.patience: this data has no validation split to judge by')
    for ops in (config.preprocess.train, config.preprocess.eval):
        inputs.check(train, ops)
    input_shape = inputs.input_shape(train, config.preprocess.eval)
    check_channels(config.preprocess.mean, config.preprocess.std, input_shape[-1])
    model = create_model(**{'num_classes': len(train.class_names)} | config.model.to_dict())
    recipe = make_recipe(config, model, train.class_names, total_steps, to_steps)
    recipe.task.check(train)
    if config.data.views > 1 and not recipe.task.takes_views:
        raise UserError(
            f'data.views={config.data.views}: the task {config.task.name!r} takes one view of an image'
        )
    if recipe.plateau and recipe.plateau.metric == 'loss' and 'loss' not in recipe.task.metrics:
        raise UserError(
            f"schedule.metric='loss': the task {config.task.name!r} has no such metric; leave it out to "
            'follow what the run is selected by'
        )
    check_contract(model, input_shape)
    shapes = jax.eval_shape(lambda: init_variables(model, input_shape, jax.random.key(0)))
    if config.init_from is not None:
        from vision.training.init_from import check_source

        check_source(config.init_from, config.model.name, shapes)
    recipe.factors.check(shapes['params'])
    optimizer_config = config.optimizer.to_dict()
    if config.weight_decay or optimizer_config.get('weight_decay'):
        patterns.check('weight_decay_pattern', config.weight_decay_pattern, shapes['params'])
    optimizer_lib.check(optimizer_config, recipe.optimizer, shapes['params'])
    return Setup(
        config=config,
        mesh=mesh,
        train=train,
        validation=validation,
        test=test,
        input_shape=input_shape,
        loading=loading_of(config),
        recipe=recipe,
        selection=Selection(recipe.task, config.training.best_by),
        total_steps=total_steps,
        stop_step=total_steps
        if stop is None
        else min(total_steps, to_steps(stop, 'training.stop_after')),
        patience=None
        if patience is None
        else durations.steps_in(patience, *sizes, 'training.patience'),
        eval_every=every('eval_every'),
        checkpoint_every=every('checkpoint_every'),
        log_every=every('log_every'),
    )


def _resolve_polyak(
    config: Any, total_steps: int, to_steps: Callable[[str, str], int]
) -> ConfigDict:
    """A config in which Polyak's average begins at a step: the training step knows no epochs."""
    if config.training.polyak_from is None:
        return config
    start = to_steps(config.training.polyak_from, 'training.polyak_from')
    if start >= total_steps:
        raise UserError(
            f'training.polyak_from={config.training.polyak_from!r} is {start} steps; '
            f'the whole run has {total_steps}: begin earlier, or lengthen training.duration'
        )
    config = config.copy_and_resolve_references()
    config.training.polyak_from = f'{start} steps'
    return config


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
    to_steps: Callable[[str, str], int] | None = None,
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
    training = config.training
    lr = peak_rate(config.optimizer.lr, config.optimizer.lr_for_batch, training.batch_size)
    settings = config.schedule.to_dict()
    schedule = make_schedule(settings, lr, total_steps, to_steps or _only_steps)
    return Recipe(
        model=model,
        task=task_of(config, class_names, model.num_classes),
        update=make_update(config['update']),
        optimizer=build_optimizer(config, schedule),
        schedule=schedule,
        averaging=make_averaging(training.to_dict()),
        factors=RateFactors(config.freeze, config.lr_factors),
        plateau=make_plateau(settings),
        frozen=config.freeze == patterns.BACKBONE,
        accumulate=training.accumulate,
        shard=training.shard,
        seed=config.seed,
    )


def build_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Builds the optimizer that a config describes, for any learning rate by step.

    Raises:
      UserError: as `make_optimizer`.
    """
    return make_optimizer(
        config.optimizer.to_dict(),
        schedule,
        WeightDecay(config.weight_decay, config.weight_decay_pattern, config.weight_decay_form),
        RateFactors(config.freeze, config.lr_factors),
        make_plateau(config.schedule.to_dict()),
        config.seed,
    )


def _only_steps(text: str, key: str) -> int:
    return durations.to_steps(text, 1, 1, key)


def normalised(run: Setup, dataset: dict[str, Any] | None = None) -> Setup:
    """The run with what `preprocess.normalise` asks for in place of its config's mean and std.

    Args:
      run: as `setup` returns it.
      dataset: `dataset.json` of the run that goes on; without it the statistics are computed,
        which reads the training split once.

    Raises:
      UserError: the training split has no image, or none but of one colour.
    """
    if run.config.preprocess.normalise == 'constants':
        return run
    config = run.config.copy_and_resolve_references()
    preprocess = config.preprocess
    if dataset is None:
        from vision.preprocess.inputs import channel_statistics

        preprocess.mean, preprocess.std = channel_statistics(
            run.train, preprocess.eval, config.evaluation.batch_size, run.mesh
        )
    else:
        preprocess.mean, preprocess.std = tuple(dataset['mean']), tuple(dataset['std'])
    task = task_of(config, run.train.class_names, run.model.num_classes)
    recipe = dataclasses.replace(run.recipe, task=task)
    return dataclasses.replace(run, config=config, recipe=recipe)


def _load_optional(settings: Mapping[str, Any], split: str) -> Source | None:
    try:
        return data.load(settings, split)
    except NoSplitError:
        return None
