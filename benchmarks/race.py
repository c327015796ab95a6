"""A race: seconds from the start of a process to 99 % on MNIST's test set, here and in plain PyTorch.

One recipe for both: LeNet-5, batches of 100 (600 steps an epoch), SGD, one warm-up and a cosine, no
augmentation; after each epoch the test set is evaluated, and the first time that 99 % of it are
right is the end. So the test set is selected on: that is what a race to an accuracy is, and no way to
report one.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.turns import python, run_process
from vision import data
from vision.core.config import default_config
from vision.core.errors import unknown
from vision.data.source import ArraySource
from vision.training.hooks import Hook

# Momentum is Nesterov's; weight decay is L2 on kernels; the warm-up and the cosine go by steps.
RECIPE: dict[str, Any] = {
    'accuracy': 0.99,
    'epochs': 5,
    'batch_size': 100,
    'lr': 0.1,
    'momentum': 0.9,
    'weight_decay': 5e-4,
    'label_smoothing': 0.1,
    'warmup_epochs': 0.5,
    'mean': 0.1307,
    'std': 0.3081,
}
PHASES = ('import', 'data', 'compile', 'train', 'eval')
_PEER = Path(__file__).with_name('torch_race.py')
_OURS = """
from benchmarks.race import run
print(run(*sys.argv[1:]))
"""


def race(
    mnist: str | None,
    peer: str | None,
    peer_python: str | None,
    rounds: int,
    peer_env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Starts ours and the peer alternately, each time with another seed.

    Args:
      mnist: the folder of the four IDX files; None for TFDS's copy.
      peer: 'torchvision' (of which only PyTorch is used) or None.
      peer_python: the Python that has it.
      rounds: processes of each.
      peer_env: the environment of the peer; this process's if None.

    Returns:
      `ours` and `peer`: `seconds` to the accuracy, of them `import`, `data` (read, and put where it
      is used), `compile`, `train` and `eval`, and the `epochs` that it took, medians of the rounds
      that reached it (None where none did), and how many `reached` it. `ratio`: how many times as fast
      ours is. Every reading under 'rounds'.

    Raises:
      UserError: an unknown peer, data that cannot be had, or a process that fails.
    """
    if peer not in (None, 'torchvision'):
        raise unknown('peer', peer, ['torchvision'])
    readings: dict[str, list[dict[str, Any]]] = {'ours': [], 'peer': []}
    with tempfile.TemporaryDirectory() as folder:
        file = write_arrays(mnist, Path(folder))
        for seed in range(rounds):
            words = [str(file), json.dumps(RECIPE), str(seed)]
            for name, command, env in (
                ('ours', python(_OURS), None),
                ('peer', [peer_python or 'python', str(_PEER)], peer_env),
            ):
                if name == 'ours' or peer:
                    started = str(time.time())
                    readings[name].append(run_process([*command, *words, started], env))
    ours = _medians(readings['ours'])
    theirs = _medians(readings['peer']) if peer else None
    finished = theirs and ours['seconds'] and theirs['seconds']
    return {
        'ours': ours,
        'peer': theirs,
        'ratio': theirs['seconds'] / ours['seconds'] if theirs and finished else None,
        'rounds': readings,
    }


def write_arrays(mnist: str | None, folder: Path) -> Path:
    """Writes MNIST into one .npz, not compressed, which both sides read with NumPy.

    What a run evaluates as it goes is its validation split: the file has the test set under both names.

    Args:
      mnist: the folder of the IDX files; None for TFDS.
      folder: where the file is written.
    """
    config = ConfigDict({'source': 'tfds', 'name': 'mnist', 'in_memory': True})
    if mnist is not None:
        config = ConfigDict({'source': 'idx', 'path': mnist})
    arrays: dict[str, np.ndarray] = {}
    for split, source in [(s, data.load(config, s)) for s in ('train', 'test')]:
        assert isinstance(source, ArraySource)
        arrays |= {f'x_{split}': source.images, f'y_{split}': source.labels}
    arrays |= {'x_validation': arrays['x_test'], 'y_validation': arrays['y_test']}
    np.savez(folder / 'mnist.npz', allow_pickle=False, **arrays)
    return folder / 'mnist.npz'


def _medians(readings: list[dict[str, Any]]) -> dict[str, Any]:
    reached = [reading for reading in readings if reading['seconds'] is not None]
    return {
        **{
            name: statistics.median(reading[name] for reading in reached) if reached else None
            for name in ('seconds', *PHASES, 'epochs')
        },
        'reached': f'{len(reached)} of {len(readings)}',
    }


def run(file: str, recipe: str, seed: str, started: str) -> str:
    """Ours, in this process: the loop that every experiment uses, checkpoints, records and all.

    Args:
      file: as `write_arrays` writes it.
      recipe: as `RECIPE`, JSON.
      seed: of the run.
      started: when the process was, in seconds since 1970.

    Returns:
      JSON: `seconds` to the accuracy or None, seconds by phase, `epochs`, and `top1` by epoch.
    """
    from vision.training.loop import train

    values = json.loads(recipe)
    config = _config(file, values, int(seed))
    stopwatch = Stopwatch(float(started), values['accuracy'])
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir, [stopwatch])
    return json.dumps(stopwatch.reading())


def _config(file: str, recipe: dict[str, Any], seed: int) -> ConfigDict:
    config = default_config()
    config.seed = seed
    config.model = ConfigDict({'name': 'lenet5', 'padding': 2})
    config.data.source, config.data.path = 'npz', file
    config.preprocess.mean, config.preprocess.std = (recipe['mean'],), (recipe['std'],)
    config.optimizer.lr, config.optimizer.momentum = recipe['lr'], recipe['momentum']
    config.optimizer.nesterov = True
    config.loss.label_smoothing = recipe['label_smoothing']
    config.weight_decay = recipe['weight_decay']
    config.schedule.warmup = f'{recipe["warmup_epochs"]} epochs'
    config.training.batch_size = recipe['batch_size']
    config.training.duration = f'{recipe["epochs"]} epochs'
    config.training.log_every = config.training.eval_every  # the stopwatch goes by both
    config.evaluation.batch_size = 1000
    return config


class Stopwatch(Hook):
    """Says what the seconds of a process went to, until validation is accurate enough; ends the run then."""

    def __init__(self, started: float, accuracy: float):
        """Counts what is past as import.

        Args:
          started: when the process was, in seconds since 1970.
          accuracy: to be reached.
        """
        self._started = self._last = started
        self._accuracy = accuracy
        self._compilations = Compilations()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._top1: list[float] = []
        self._total: float | None = None
        self._mark('import')

    def _mark(self, phase: str) -> None:
        """The time since the last mark, but for compilation, went to `phase`."""
        now, compiling = time.time(), self._compilations.take()
        self._seconds['compile'] += compiling
        self._seconds[phase] += now - self._last - compiling
        self._last = now

    def start(self, step: int) -> None:
        """All is ready."""
        self._mark('data')

    def after_log(self, step: int, record: dict[str, Any], seconds_left: float) -> None:
        """An epoch is over: its record was read off the device."""
        self._mark('train')

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> str | None:
        """Is it accurate enough?"""
        self._mark('eval')
        self._top1.append(scores['top1'])
        if scores['top1'] < self._accuracy:
            return None
        self._total = self._last - self._started
        return 'accurate enough'

    def reading(self) -> dict[str, Any]:
        """What came of it, for JSON."""
        return {
            'seconds': self._total,
            **self._seconds,
            'epochs': len(self._top1),
            'top1': self._top1,
        }


class Compilations:
    """Adds up the time in which JAX traces, lowers, compiles or fetches what it has compiled."""

    def __init__(self) -> None:
        """Listens from now on."""
        import jax

        self._spans: list[tuple[float, float]] = []  # apart, in order
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: Any) -> None:
        if not event.startswith('/jax/core/compile'):
            return
        end = time.perf_counter()
        begin = end - duration_secs
        while self._spans and self._spans[-1][0] >= begin:  # it was a part of this one
            self._spans.pop()
        self._spans.append((begin, end))

    def take(self) -> float:
        """Returns the seconds since the last call."""
        seconds = sum(end - begin for begin, end in self._spans)
        self._spans.clear()
        return seconds
