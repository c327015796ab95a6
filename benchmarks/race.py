"""Race to 99 % accuracy on the MNIST test set, between this project and plain PyTorch.

The race measures the seconds from the start of a process until the accuracy is reached. Both sides
use the same recipe: LeNet-5, batches of 100 (600 steps per epoch), SGD with warm-up and a cosine
schedule, no augmentation. The test set is evaluated after each epoch and determines when a race
ends, so the accuracy of a race must not be reported as a result.
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

# The recipe of both sides. Momentum is Nesterov's, weight decay is L2 on kernels, and the learning
# rate changes with every step.
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
    """Runs our process and the peer's in turn; each round has another seed.

    Args:
      mnist: the folder of the four IDX files; None to read MNIST from TFDS.
      peer: 'torchvision' (only PyTorch is used) or None.
      peer_python: the Python in which the peer is installed.
      rounds: the number of processes of each.
      peer_env: the environment variables of the peer; None for those of this process.

    Returns:
      `ours` and `peer`: medians over the rounds that reached the accuracy (None if no round did) of
      the `seconds` in total, the seconds by phase (`import`, `data`, `compile`, `train`, `eval`)
      and the number of `epochs`; and `reached`, the number of rounds that reached the accuracy.
      `data` is the time to read the data and to copy it to the device. `ratio`: the peer's seconds
      over ours. `rounds`: all readings.

    Raises:
      UserError: the peer is unknown, the data cannot be read, or a process failed.
    """
    if peer not in (None, 'torchvision'):
        raise unknown('peer', peer, ['torchvision'])
    # Both sides read the same arrays and get the same recipe and seed.
    readings: dict[str, list[dict[str, Any]]] = {'ours': [], 'peer': []}
    with tempfile.TemporaryDirectory() as folder:
        file = write_arrays(mnist, Path(folder))
        for seed in range(rounds):
            # Import time counts, so the process gets the time at which it was started.
            words = [str(file), json.dumps(RECIPE), str(seed)]
            for name, command, env in (
                ('ours', python(_OURS), None),
                ('peer', [peer_python or 'python', str(_PEER)], peer_env),
            ):
                if name == 'ours' or peer:
                    started = str(time.time())
                    readings[name].append(run_process([*command, *words, started], env))
    ours = _medians(readings['ours'])
    peers = _medians(readings['peer']) if peer else None
    finished = peers and ours['seconds'] and peers['seconds']
    return {
        'ours': ours,
        'peer': peers,
        'ratio': peers['seconds'] / ours['seconds'] if peers and finished else None,
        'rounds': readings,
    }


def write_arrays(mnist: str | None, folder: Path) -> Path:
    """Writes MNIST to one uncompressed `mnist.npz`, which both sides read with NumPy.

    Training evaluates the validation split, so the file has the test set under both names.

    Args:
      mnist: the folder of the IDX files; None to read MNIST from TFDS.
      folder: the folder of the new file.
    """
    # Read MNIST from TFDS, or from the IDX files if a folder is given.
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
    """Returns the medians over the readings that reached the accuracy, and their number."""
    reached = [reading for reading in readings if reading['seconds'] is not None]
    return {
        **{
            name: statistics.median(reading[name] for reading in reached) if reached else None
            for name in ('seconds', *PHASES, 'epochs')
        },
        'reached': f'{len(reached)} of {len(readings)}',
    }


def run(file: str, recipe: str, seed: str, started: str) -> str:
    """Trains in this process with the usual training loop, including checkpoints and records.

    Args:
      file: the file of `write_arrays`.
      recipe: `RECIPE` as JSON.
      seed: the run's seed.
      started: the start of the process, in seconds since 1970.

    Returns:
      JSON with the `seconds` to the accuracy (or null), the seconds by phase, `epochs`, and the
      `top1` of each epoch.
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
    # The same values as in the peer's program, in the keys of our config.
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
    # The stopwatch reads the time at log records and evaluations; both are at the end of an epoch.
    config.training.log_every = config.training.eval_every
    config.evaluation.batch_size = 1000
    return config


class Stopwatch(Hook):
    """Hook that splits the run's time into phases, and stops the run at a validation accuracy."""

    def __init__(self, started: float, accuracy: float):
        """Counts the time so far as import.

        Args:
          started: the start of the process, in seconds since 1970.
          accuracy: the validation top-1 accuracy at which the run stops.
        """
        self._started = self._last = started
        self._accuracy = accuracy
        self._compilations = Compilations()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._top1: list[float] = []
        self._total: float | None = None
        self._mark('import')

    def _mark(self, phase: str) -> None:
        """Adds the time since the last mark to `phase`, except for the time of compilation."""
        # JAX compiles inside the phases 'train' and 'eval': subtract that time.
        now, compiling = time.time(), self._compilations.take()
        self._seconds['compile'] += compiling
        self._seconds[phase] += now - self._last - compiling
        self._last = now

    def start(self, step: int) -> None:
        """Ends the phase 'data': training is about to start."""
        self._mark('data')

    def after_log(self, step: int, record: dict[str, Any], seconds_left: float) -> None:
        """Ends the phase 'train': the epoch's metrics were read from the device."""
        self._mark('train')

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> str | None:
        """Ends the phase 'eval'; stops the run if the accuracy is reached."""
        self._mark('eval')
        self._top1.append(scores['top1'])
        if scores['top1'] < self._accuracy:
            return None
        self._total = self._last - self._started
        return 'the accuracy is reached'

    def reading(self) -> dict[str, Any]:
        """Returns the seconds in total and by phase, and the accuracies, for JSON."""
        return {
            'seconds': self._total,
            **self._seconds,
            'epochs': len(self._top1),
            'top1': self._top1,
        }


class Compilations:
    """Sums the time in which JAX traces, lowers and compiles, or reads its compilation cache."""

    def __init__(self, kind: str = '') -> None:
        """Starts to listen to JAX's events.

        Args:
          kind: start of the names of the events that count: 'backend_compile' leaves out tracing.
        """
        import jax

        self._prefix = f'/jax/core/compile/{kind}'
        self._spans: list[tuple[float, float]] = []  # disjoint, in order
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: Any) -> None:
        # An event reports only its duration, and arrives at its end.
        if not event.startswith(self._prefix):
            return
        end = time.perf_counter()
        begin = end - duration_secs
        # Events are nested: an event replaces those that it contains.
        while self._spans and self._spans[-1][0] >= begin:
            self._spans.pop()
        self._spans.append((begin, end))

    def take(self) -> float:
        """Returns the seconds of compilation since the last call."""
        seconds = sum(end - begin for begin, end in self._spans)
        self._spans.clear()
        return seconds
