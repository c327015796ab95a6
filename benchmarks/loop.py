"""The throughput of the training loop beside that of its bare jitted step, and from files beside synthetic images.

Other benchmarks time the loop with `synthetic_config` and `loop_rate` too.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from benchmarks.input import make_jpegs
from benchmarks.turns import in_turn, median_ratio, medians
from vision.core.config import default_config
from vision.preprocess import inputs
from vision.training.hooks import Hook
from vision.training.loop import train
from vision.training.setup import Recipe, make_recipe, setup
from vision.training.step import init_state, make_train_step

_TIMED = 40  # steps of a round


def synthetic_config(model: str, image_size: int, batch_size: int) -> ConfigDict:
    """A run on synthetic images, without an evaluation within its first steps."""
    config = default_config()
    config.model.name = model
    config.data.source = 'synthetic'
    config.data.num_examples, config.data.image_size = 512, image_size
    config.preprocess.mean, config.preprocess.std = (0.3,), (0.2,)
    config.training.batch_size = batch_size
    config.training.duration = '1000000 steps'
    config.training.eval_every = config.training.checkpoint_every = '1000000 steps'
    return config


def plain_recipe(config: ConfigDict, model: nn.Module) -> Recipe:
    """The config's training step with SGD, momentum and L2 on every parameter, at a constant rate."""
    config = config.copy_and_resolve_references()
    config.schedule.name, config.optimizer.lr = 'constant', 1e-3
    config.weight_decay, config.weight_decay_pattern = 1e-4, ''
    names = [str(i) for i in range(model.num_classes)]
    return make_recipe(config, model, names, 1_000_000)


def loop_speed(
    model: str = 'resnet20', image_size: int = 32, batch_size: int = 16, rounds: int = 3
) -> dict[str, Any]:
    """Measures the loop and the bare jitted step in turn, in one process.

    Args:
      model: in the registry.
      image_size: pixels.
      batch_size: of the global batch.
      rounds: how often each is measured.

    Returns:
      `step` and `loop`, images per second (the median of the rounds), and `ratio`, the median of the
      rounds' ratios. The bare step has its batch on the device; the loop makes, counts, records and
      shows.
    """
    config = synthetic_config(model, image_size, batch_size)
    run = setup(config)
    state = init_state(run.recipe, run.input_shape, run.mesh)
    train_step = make_train_step(run.recipe, run.mesh)
    batch = next(inputs.TrainBatches(run.train, run.loading, run.mesh, 0))

    def bare() -> float:
        nonlocal state
        for timed in (False, True):
            began = time.perf_counter()
            for _ in range(_TIMED if timed else 2):
                state, metrics = train_step(state, batch)
            jax.block_until_ready(metrics)
        return _TIMED * batch_size / (time.perf_counter() - began)

    readings = in_turn({'step': bare, 'loop': lambda: loop_rate(config, _TIMED)}, rounds)
    return {'model': model, **medians(readings), 'ratio': median_ratio(readings, 'loop', 'step')}


def end_to_end(
    model: str = 'resnet18', image_size: int = 224, batch_size: int = 16, rounds: int = 3
) -> dict[str, Any]:
    """Measures the loop on JPEG files and on synthetic images in memory, in turn, in one process.

    Args:
      model: in the registry.
      image_size: pixels.
      batch_size: of the global batch.
      rounds: how often each is measured.

    Returns:
      `files` and `synthetic`, images per second (the medians of the rounds), `ratio`, the median of
      the rounds' ratios, and all readings under 'rounds'. The files are those of
      `benchmarks.input`: 500×375, 60 to 100 KB, decoded, cropped at random and flipped.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_jpegs(Path(folder))
        synthetic = synthetic_config(model, image_size, batch_size)
        synthetic.data.num_classes = 2
        files = synthetic.copy_and_resolve_references()
        files.data.source, files.data.path = 'folder', folder
        files.preprocess.train = f'decode|random_resized_crop({image_size})|flip_lr'
        files.preprocess.eval = f'decode|resize({image_size})'
        configs = {'files': files, 'synthetic': synthetic}
        rates = {name: partial(loop_rate, config, _TIMED) for name, config in configs.items()}
        readings = in_turn(rates, rounds)
    ratio = median_ratio(readings, 'files', 'synthetic')
    return {'model': model, **medians(readings), 'ratio': ratio, 'rounds': readings}


def epoch_speed(
    model: str, dtype: str, image_size: int, channels: int, batch_size: int, examples: int
) -> dict[str, Any]:
    """Measures the loop's second epoch on images in the device's memory.

    Args:
      model: in the registry.
      dtype: it computes in.
      image_size: pixels; 28 with one channel is MNIST's form.
      channels: of the images.
      batch_size: of the global batch.
      examples: of an epoch.

    Returns:
      `rate`, images per second, and `device`.
    """
    config = synthetic_config(model, image_size, batch_size)
    config.data.num_examples, config.data.channels = examples, channels
    config.model.dtype = dtype
    if model == 'lenet5' and image_size == 28:
        config.model.padding = 2
    steps = -(-examples // batch_size)
    rate = loop_rate(config, steps, warm_up=steps)
    return {'rate': rate, 'device': jax.devices()[0].device_kind}


def loop_rate(config: ConfigDict, steps: int, warm_up: int = 6) -> float:
    """Trains in a new workdir and returns the throughput of the loop, log records included.

    Args:
      config: of the run.
      steps: how many are timed.
      warm_up: steps before them, which are not timed.

    Returns:
      Images per second.
    """
    config = config.copy_and_resolve_references()
    config.training.stop_after = f'{steps + warm_up} steps'
    config.training.log_every = f'{max(steps // 2, 1)} steps'
    rate = _Rate(warm_up, warm_up + steps)
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir, [rate])
    return steps * config.training.batch_size / rate.seconds


class _Rate(Hook):
    """Times the loop from one step to another, log records and all."""

    def __init__(self, first: int, last: int):
        self._first, self._last = first, last

    def after_step(self, step: int, batch: Any, metrics: Any) -> None:
        if step == self._first:
            jax.block_until_ready(metrics)
            self.began = time.perf_counter()
        if step == self._last:
            jax.block_until_ready(metrics)
            self.seconds = time.perf_counter() - self.began
