"""Throughput of the training loop: compared with its bare jitted step, and on files.

Other benchmarks also use `synthetic_config` and `loop_rate`.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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

_TIMED = 40  # timed steps of a round


def synthetic_config(model: str, image_size: int, batch_size: int) -> ConfigDict:
    """Returns the config of a run on synthetic images, without evaluations while it is timed."""
    config = default_config()
    config.model.name = model
    # LeNet-5 expects 32 pixels: the model pads MNIST's 28 pixels.
    if model == 'lenet5' and image_size == 28:
        config.model.padding = 2
    config.data.source = 'synthetic'
    config.data.num_examples, config.data.image_size = 512, image_size
    config.preprocess.mean, config.preprocess.std = (0.3,), (0.2,)
    config.training.batch_size = batch_size
    # Measurements stop long before the first evaluation and the first checkpoint.
    config.training.duration = '1000000 steps'
    config.training.eval_every = config.training.checkpoint_every = '1000000 steps'
    return config


def plain_recipe(config: ConfigDict, model: nn.Module) -> Recipe:
    """Returns a recipe with SGD, momentum, a constant learning rate and L2 on all parameters."""
    config = config.copy_and_resolve_references()
    config.schedule.name, config.optimizer.lr = 'constant', 1e-3
    config.weight_decay, config.weight_decay_pattern = 1e-4, ''
    names = [str(i) for i in range(model.num_classes)]
    return make_recipe(config, model, names, 1_000_000)


def loop_speed(
    model: str = 'resnet20', image_size: int = 32, batch_size: int = 16, rounds: int = 3
) -> dict[str, Any]:
    """Measures the training loop and its bare jitted step in turn, in one process.

    The bare step reuses one batch on the device. The loop also makes batches, accumulates metrics,
    writes records and shows progress.

    Returns:
      `step` and `loop`, see `_compare`; `ratio` is that of the loop to the step.
    """
    # The state and the batch of the bare step; the loop makes its own.
    config = synthetic_config(model, image_size, batch_size)
    run = setup(config)
    state = init_state(run.recipe, run.input_shape, run.mesh)
    train_step = make_train_step(run.recipe, run.mesh)
    batch = next(inputs.TrainBatches(run.train, run.loading, run.mesh, 0))

    def bare() -> float:
        nonlocal state
        # Two steps to warm up, then the timed ones.
        for timed in (False, True):
            began = time.perf_counter()
            for _ in range(_TIMED if timed else 2):
                state, metrics = train_step(state, batch)
            jax.block_until_ready(metrics)
        return _TIMED * batch_size / (time.perf_counter() - began)

    measures = {'loop': lambda: loop_rate(config, _TIMED), 'step': bare}
    return _compare(model, measures, rounds)


def end_to_end(
    model: str = 'resnet18', image_size: int = 224, batch_size: int = 16, rounds: int = 3
) -> dict[str, Any]:
    """Measures the training loop on JPEG files and on synthetic images, in turn, in one process.

    The files are those of `benchmarks.input` (500×375 pixels, 60 to 100 KB). They are decoded,
    cropped at random and flipped. The synthetic images are in memory.

    Returns:
      `files` and `synthetic`, see `_compare`; `ratio` is that of the files to the synthetic images.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The two runs differ only in their data and its preprocessing.
        make_jpegs(Path(folder))
        synthetic = synthetic_config(model, image_size, batch_size)
        synthetic.data.num_classes = 2
        files = synthetic.copy_and_resolve_references()
        files.data.source, files.data.path = 'folder', folder
        files.preprocess.train = f'decode|random_resized_crop({image_size})|flip_lr'
        files.preprocess.eval = f'decode|resize({image_size})'
        configs = {'files': files, 'synthetic': synthetic}
        measures = {name: partial(loop_rate, config, _TIMED) for name, config in configs.items()}
        return _compare(model, measures, rounds)


def _compare(
    model: str, measures: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, Any]:
    """Measures two forms of training in turn.

    Returns:
      `model`; images/s of each form by its name, the median over the rounds; `ratio`, the median of
      the rounds' ratios of the first form to the second; `rounds`, all readings.
    """
    readings = in_turn(measures, rounds)
    ratio = median_ratio(readings, *measures)
    return {'model': model, **medians(readings), 'ratio': ratio, 'rounds': readings}


def epoch_speed(
    model: str,
    dtype: str,
    image_size: int,
    channels: int,
    batch_size: int,
    examples: int,
    steps_per_call: int | None = None,
) -> dict[str, Any]:
    """Measures the second epoch of a training loop on images in device memory.

    Args:
      model: the model's name in the registry.
      dtype: the dtype of the computation.
      image_size: pixels; 28 with one channel is MNIST's format.
      channels: the number of channels.
      batch_size: the global batch size.
      examples: the number of examples of an epoch.
      steps_per_call: the maximum number of steps in a call of the device.

    Returns:
      `rate` in images/s, and `device`.
    """
    config = synthetic_config(model, image_size, batch_size)
    config.data.num_examples, config.data.channels = examples, channels
    config.model.dtype, config.training.steps_per_call = dtype, steps_per_call
    # The first epoch includes compilation, so it serves as the warm-up.
    steps = -(-examples // batch_size)
    rate = loop_rate(config, steps, warm_up=steps)
    return {'rate': rate, 'device': jax.devices()[0].device_kind}


def loop_rate(
    config: ConfigDict, steps: int, warm_up: int = 6, hooks: Sequence[Hook] = ()
) -> float:
    """Trains in a temporary workdir and returns the throughput of the loop in images/s.

    Args:
      config: the config of the run; its length is replaced.
      steps: the number of timed steps, during which two log records are written.
      warm_up: the number of steps before them.
      hooks: more hooks of the loop.
    """
    # Stop after the timed steps; the schedule still spans the whole duration.
    config = config.copy_and_resolve_references()
    config.training.stop_after = f'{steps + warm_up} steps'
    config.training.log_every = f'{max(steps // 2, 1)} steps'
    rate = _Rate(warm_up, warm_up + steps)
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir, [*hooks, rate])
    return rate.steps * config.training.batch_size / rate.seconds


class _Rate(Hook):
    """Hook that times the loop from the end of the call that takes step `first` to step `last`."""

    every_step = False

    def __init__(self, first: int, last: int):
        self._first, self._last = first, last
        self._began: tuple[int, float] | None = None

    def after_step(self, step: int, batch: Any, metrics: Any) -> None:
        # Wait for the device at both ends only.
        if self._began is None and step >= self._first:
            jax.block_until_ready(metrics)
            self._began = step, time.perf_counter()
        elif self._began is not None and step == self._last:
            jax.block_until_ready(metrics)
            self.steps = step - self._began[0]
            self.seconds = time.perf_counter() - self._began[1]
