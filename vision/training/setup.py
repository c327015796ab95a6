"""What a config turns into before the first step: data, model, optimizer, and the run's length."""

import dataclasses
from typing import Any

import flax.linen as nn
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision import data
from vision.core import config as config_lib
from vision.core import durations
from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.data.source import ArraySource, NoSplitError, Source
from vision.models import create_model
from vision.models.summary import check_contract
from vision.preprocess import inputs
from vision.preprocess.device import check_channels
from vision.training import losses
from vision.training.optimizer import make_optimizer, make_schedule


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run, resolved.

    Attributes:
      config: checked; nothing in it is missing.
      mesh: of all devices.
      train: the training split.
      validation: the split that models are selected on, or None.
      test: the split that is reported once, or None.
      input_shape: (H, W, C) of what the model is fed.
      model: unbound.
      schedule: the learning rate by step.
      optimizer: optax's.
      total_steps: of the run.
      stop_step: where it stops this time, ≤ total_steps.
      eval_every, checkpoint_every, log_every: at which steps that is due.
    """

    config: ConfigDict
    mesh: Mesh
    train: Source
    validation: Source | None
    test: Source | None
    input_shape: tuple[int, int, int]
    model: nn.Module
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    stop_step: int
    eval_every: durations.Every
    checkpoint_every: durations.Every
    log_every: durations.Every

    @property
    def dataset(self) -> dict[str, Any]:
        """What prediction must know of the data: `dataset.json`."""
        in_memory = self.train if isinstance(self.train, ArraySource) else None
        splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
        return {
            'class_names': list(self.train.class_names),
            # Of images as the source has them; null where each has its own.
            'image_shape': list(in_memory.images.shape[1:]) if in_memory else None,
            'input_shape': list(self.input_shape),
            'num_examples': {k: v.num_examples for k, v in splits.items() if v is not None},
        }


def setup(config: ConfigDict) -> Setup:
    """Checks a config, opens its data and builds what the loop needs; compiles nothing.

    Raises:
      UserError: anything in it that makes no sense, or data that is not there.
    """
    config_lib.check(config)
    mesh = mesh_lib.make_mesh()
    mesh_lib.check_batch_size(config.training.batch_size, mesh, 'training.batch_size')
    train = data.load(config.data, 'train')
    validation, test = (_load_optional(config, split) for split in ('validation', 'test'))
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
    schedule = make_schedule(config, total_steps, to_steps)
    stop = config.training.stop_after
    losses.make_loss(config.loss)
    for ops in (config.preprocess.train, config.preprocess.eval):
        inputs.check(train, ops)
    input_shape = inputs.input_shape(train, config.preprocess.eval)
    check_channels(config.preprocess.mean, config.preprocess.std, input_shape[-1])
    model = create_model(**{'num_classes': len(train.class_names)} | config.model.to_dict())
    check_contract(model, input_shape)
    return Setup(
        config=config,
        mesh=mesh,
        train=train,
        validation=validation,
        test=test,
        input_shape=input_shape,
        model=model,
        schedule=schedule,
        optimizer=make_optimizer(config, schedule),
        total_steps=total_steps,
        stop_step=total_steps
        if stop is None
        else min(total_steps, to_steps(stop, 'training.stop_after')),
        eval_every=every('eval_every'),
        checkpoint_every=every('checkpoint_every'),
        log_every=every('log_every'),
    )


def _load_optional(config: ConfigDict, split: str) -> Source | None:
    try:
        return data.load(config.data, split)
    except NoSplitError:
        return None
