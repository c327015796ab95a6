"""Learning rate range test (Smith 2017, "Cyclical learning rates", section 3.3).

The learning rate grows by a constant factor from step to step until the loss explodes. The learning
rate at which the loss falls most steeply is a good choice. Learning rates above that of the lowest
loss are too high.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from vision.core.errors import UserError
from vision.core.progress import track
from vision.preprocess import inputs
from vision.training.setup import Setup, normalised
from vision.training.start import check_start, first_state
from vision.training.step import make_train_step

LOWEST, HIGHEST = 1e-6, 10.0  # learning rates
_SMOOTHING = 0.9  # decay of the exponential moving average of the loss
_EXPLODED = 4.0  # the test stops at this multiple of the lowest smoothed loss
_READ_EVERY = 10  # steps between readings of the loss from the device


def find_lr(run: Setup, steps: int = 150) -> dict[str, Any]:
    """Trains from the initial weights while the learning rate grows from 1e-6 to 10.

    Args:
      run: the run, as `setup` returns it. Its learning rate and schedule are not used.
      steps: the number of steps over the whole range. The test ends early if the loss explodes.

    Returns:
      `suggestion`: the learning rate at which the smoothed loss falls most steeply. `lowest`: the
      learning rate of the lowest smoothed loss. `lr`, `loss` and `smoothed`: the curves.

    Raises:
      UserError: training would refuse the run, images cannot be read, or the loss never fell.
    """
    start = check_start(run)
    run = normalised(run)
    # Replace the schedule of the run by an exponential one.
    factor = (HIGHEST / LOWEST) ** (1 / max(steps - 1, 1))
    schedule: optax.Schedule = lambda step: LOWEST * factor**step  # noqa: E731
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, schedule=schedule))
    state = first_state(run, start)
    train_step = make_train_step(run.recipe, run.mesh)
    batches = inputs.TrainBatches(run.train, run.loading, run.mesh, 0)
    # Train. Read the losses only every few steps, so that the device does not wait for the host.
    losses: list[float] = []
    pending = []
    for step in track(range(1, steps + 1), steps, 'compiling, then trying learning rates'):
        state, metrics = train_step(state, next(batches))
        pending.append(metrics)
        if step % _READ_EVERY == 0 or step == steps:
            batches.check()
            read = jax.device_get(pending)
            losses += [float(m['loss']) / max(float(m['count']), 1) for m in read]
            pending = []
            # The next learning rates are higher, and the loss would only grow further.
            if has_exploded(losses):
                break
    rates = LOWEST * factor ** np.arange(len(losses))
    return analyse(rates, np.array(losses))


def smooth(losses: np.ndarray) -> np.ndarray:
    """Returns the exponential moving average of losses [N] with decay 0.9, bias-corrected."""
    smoothed, average = np.empty(len(losses)), 0.0
    for i, loss in enumerate(losses):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed[i] = average / (1 - _SMOOTHING ** (i + 1))
    return smoothed


def has_exploded(losses: list[float]) -> bool:
    """Returns True if a loss is not finite, or the smoothed loss is far above its minimum."""
    if not all(map(math.isfinite, losses)):
        return True
    smoothed = smooth(np.array(losses))
    return bool(smoothed[-1] > _EXPLODED * smoothed.min())


def analyse(rates: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """Finds the best learning rate in a curve of ascending learning rates [N] and losses [N].

    Raises:
      UserError: the loss never fell.
    """
    # Use the losses before the first one that is not finite.
    finite = np.isfinite(losses)
    end = len(losses) if finite.all() else int(np.argmin(finite))
    rates, losses = rates[:end], losses[:end]
    smoothed = smooth(losses)
    lowest = int(np.argmin(smoothed)) if end else 0
    if lowest < 2:
        raise UserError('find_lr: the loss never fell; check the data with experiments.preview')
    # The steepest descent, over the logarithm of the learning rate, before the lowest loss.
    slopes = np.gradient(smoothed[: lowest + 1], np.log(rates[: lowest + 1]))
    return {
        'suggestion': float(rates[np.argmin(slopes)]),
        'lowest': float(rates[lowest]),
        'lr': rates.tolist(),
        'loss': losses.tolist(),
        'smoothed': smoothed.tolist(),
    }


def draw(result: dict[str, Any], path: Path, title: str) -> None:
    """Draws the result of `find_lr` as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    axes.plot(result['lr'], result['loss'], color='0.8', linewidth=1, label='loss of a batch')
    axes.plot(result['lr'], result['smoothed'], color='C0', label='smoothed')
    suggestion = result['suggestion']
    axes.axvline(suggestion, color='C1', linestyle='--', label=f'suggestion {suggestion:.2g}')
    # Scale the axis by the first half of the curve: with the high losses at the end, the descent
    # would not be visible.
    smoothed = np.array(result['smoothed'])
    axes.set_ylim(0, 1.6 * smoothed[: len(smoothed) // 2 + 1].max())
    axes.set_xscale('log')
    axes.set_xlabel('learning rate')
    axes.set_ylabel('training loss')
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)
