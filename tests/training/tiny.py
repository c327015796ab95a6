"""A small network and config whose runs take seconds; tests share the compiled programs."""

import flax.linen as nn
import jax.numpy as jnp

from configs.digits_lenet5 import get_config
from vision.core.config import resolve
from vision.models.base import ImageModel
from vision.models.layers import BatchNorm, Conv, Dense, flatten
from vision.training.setup import make_recipe

NET = f'{__name__}:Net'
# The same as flags, without the affine op, which takes most of the compile time.
FLAGS = (
    '--config=configs/digits_lenet5.py',
    f'--config.model.name={NET}',
    '--config.preprocess.train=resize(32)|translate(3)',
)


class Net(ImageModel):
    """A convolution with BatchNorm and a hidden layer with dropout, on images of 32 px.

    The state has every kind of variable, and little has to be compiled. Without `norm`, evaluation
    depends on the parameters alone.
    """

    norm: bool = True

    @nn.compact
    def __call__(self, images, train):
        self.check_images(images, exact_size=32)
        endpoints = {}
        x = Conv(8, 5, strides=4, padding=2, dtype=self.dtype, name='conv')(images)
        x = nn.relu(BatchNorm(dtype=self.dtype, name='bn')(x, train) if self.norm else x)
        x = self.record(endpoints, 'stage1', x)
        x = nn.Dropout(0.1, deterministic=not train)(flatten(x))
        x = nn.relu(Dense(32, dtype=self.dtype, name='hidden')(x))
        x = self.record(endpoints, 'features', x)
        return Dense(self.num_classes, output_dtype=jnp.float32, name='head')(x), endpoints


def build_optimizer(config, schedule):
    """Builds the optimizer that a config describes, for a given schedule."""
    recipe = make_recipe(resolve(config), Net(num_classes=10), '0123456789', 1000)
    return recipe.optimizer_for(schedule)


def tiny_config(**overrides):
    """The small network on digits, 24 steps of 32; overrides like 'training__log_every'."""
    config = get_config()
    values = {
        'model.name': NET,
        'preprocess.train': 'resize(32)|translate(3)',
        'training.batch_size': 32,
        'training.ema_decay': 0.0,
        'training.duration': '24 steps',
        'training.eval_every': '8 steps',
        'training.log_every': '6 steps',
        'training.checkpoint_every': '12 steps',
        'schedule.warmup': '2 steps',
        'evaluation.batch_size': 100,
    }
    values |= {key.replace('__', '.'): value for key, value in overrides.items()}
    for key, value in values.items():
        config.update_from_flattened_dict({key: value})
    return config
