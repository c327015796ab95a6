"""The range test for the learning rate (Smith 2017, "Cyclical learning rates", section 3.3).

The rate grows from step to step, by a constant factor, until the loss explodes. Where it fell most
steeply is a good rate; beyond its lowest point is too much.
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

LOWEST, HIGHEST = 1e-6, 10.0
_SMOOTHING = 0.9  # of the loss, over steps
_EXPLODED = 4.0  # times the lowest smoothed loss
_READ_EVERY = 10  # steps


def find_lr(run: Setup, steps: int = 150) -> dict[str, Any]:
    """Takes `steps` steps of the config's own training, from its first weights, while the rate grows from 1e-6 to 10.

    Args:
      run: as `setup` returns it; its rate and schedule are not used.
      steps: of the whole range; it ends early where the loss explodes.

    Returns:
      `suggestion`: the rate at which the smoothed loss falls most steeply; `lowest`: the rate of the
      lowest smoothed loss; `lr`, `loss` and `smoothed`: the curve.

    Raises:
      UserError: what would be refused of a run, images that cannot be read, or a loss that fell nowhere.
    """
    start = check_start(run)
    run = normalised(run)
    factor = (HIGHEST / LOWEST) ** (1 / max(steps - 1, 1))
    schedule: optax.Schedule = lambda step: LOWEST * factor**step  # noqa: E731
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, schedule=schedule))
    state = first_state(run, start)
    train_step = make_train_step(run.recipe, run.mesh)
    batches = inputs.TrainBatches(run.train, run.loading, run.mesh, 0)
    losses: list[float] = []
    pending = []
    for step in track(
        range(1, steps + 1), steps, 'the first step is compiled, then rates are tried'
    ):
        state, metrics = train_step(state, next(batches))
        pending.append(metrics)
        if step % _READ_EVERY == 0 or step == steps:
            batches.check()
            read = jax.device_get(pending)
            losses += [float(m['loss']) / max(float(m['count']), 1) for m in read]
            pending = []
            if has_exploded(losses):
                break
    rates = LOWEST * factor ** np.arange(len(losses))
    return analyse(rates, np.array(losses))


def smooth(losses: np.ndarray) -> np.ndarray:
    """The running mean of losses [N], each weighing 0.9 times the next, without a bias at the start."""
    smoothed, average = np.empty(len(losses)), 0.0
    for i, loss in enumerate(losses):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed[i] = average / (1 - _SMOOTHING ** (i + 1))
    return smoothed


def has_exploded(losses: list[float]) -> bool:
    """True if a loss is no number, or the smoothed loss is far above its lowest."""
    if not all(map(math.isfinite, losses)):
        return True
    smoothed = smooth(np.array(losses))
    return bool(smoothed[-1] > _EXPLODED * smoothed.min())


def analyse(rates: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """Finds the suggestion in a curve of rates [N], ascending, and losses [N].

    Raises:
      UserError: the loss fell nowhere.
    """
    finite = np.isfinite(losses)
    end = len(losses) if finite.all() else int(np.argmin(finite))
    rates, losses = rates[:end], losses[:end]
    smoothed = smooth(losses)
    lowest = int(np.argmin(smoothed)) if end else 0
    if lowest < 2:
        raise UserError('find_lr: the loss fell nowhere; look at the data with experiments.preview')
    slopes = np.gradient(smoothed[: lowest + 1], np.log(rates[: lowest + 1]))
    return {
        'suggestion': float(rates[np.argmin(slopes)]),
        'lowest': float(rates[lowest]),
        'lr': rates.tolist(),
        'loss': losses.tolist(),
        'smoothed': smoothed.tolist(),
    }


def draw(result: dict[str, Any], path: Path, title: str) -> None:
    """Draws what `find_lr` returned, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    axes.plot(result['lr'], result['loss'], color='0.8', linewidth=1, label='loss of a batch')
    axes.plot(result['lr'], result['smoothed'], color='C0', label='smoothed')
    suggestion = result['suggestion']
    axes.axvline(suggestion, color='C1', linestyle='--', label=f'suggestion {suggestion:.2g}')
    smoothed = np.array(result['smoothed'])
    axes.set_ylim(0, 1.6 * smoothed[: len(smoothed) // 2 + 1].max())
    axes.set_xscale('log')
    axes.set_xlabel('learning rate')
    axes.set_ylabel('training loss')
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)
