"""Start-up: time from the start of a process to its first step or its answer, part by part."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.loop import synthetic_config
from benchmarks.race import Compilations
from benchmarks.turns import python
from vision.core.errors import UserError
from vision.training.hooks import Hook
from vision.training.loop import train

_REPO = Path(__file__).parents[1]
_PHOTO = _REPO / 'docs' / 'photos' / 'cat.jpg'
_LIBRARIES = 'import jax, flax, optax, orbax.checkpoint'
_START = """
from benchmarks.startup import take_one_step
take_one_step(sys.argv[1], *map(int, sys.argv[2:4]), *map(float, sys.argv[4:]))
"""
_MAKE = """
from benchmarks.startup import make_run
make_run(sys.argv[1])
"""
# Commands whose --help is measured.
_HELP = ('train', 'evaluate', 'predict', 'search', 'models', 'serve')


class Taken(NamedTuple):
    """Time of a process: seconds, CPU seconds (user and system), and the last line it printed."""

    seconds: float
    cpu: float
    last: str


def startup(rounds: int = 3) -> list[dict[str, Any]]:
    """Measures starts of commands, each in a process of its own.

    Returns:
      One row for each command with an empty compilation cache ('cold') and the next time ('warm'),
      medians over the rounds: `seconds` and `cpu` (user and system) until the first step or the end;
      `beyond` and `beyond_cpu`, the same less the imports of jax, flax, optax and orbax, which the
      first row has; and the `parts` of a training run, see `first_step`.
    """
    imports = _median([_spent([sys.executable, '-c', _LIBRARIES]) for _ in range(rounds)])
    rows = [_row('imports', '', imports, Taken(0.0, 0.0, ''))]
    with tempfile.TemporaryDirectory() as folder:
        digits, photos = Path(folder) / 'digits', Path(folder) / 'photos'
        _spent(
            _command('train', '--config=configs/digits_lenet5.py', f'--workdir={digits}')
            + ['--config.training.duration=2 epochs', '--config.schedule.warmup=0 epochs']
        )
        _spent([*python(_MAKE), str(photos)])
        commands = {
            **{f'{name} --help': _command(name, '--help') for name in _HELP},
            'models': _command('models'),
            'evaluate, digits': _command('evaluate', f'--workdir={digits}'),
            'predict, EfficientNet-Lite0': _command(
                'predict', '--pretrained=efficientnet_lite0', str(_PHOTO)
            ),
            'predict, ResNet-50': _command('predict', f'--workdir={photos}', str(_PHOTO)),
        }
        starts: dict[str, Callable[[], list[Taken]]] = {
            'train LeNet-5': partial(first_step, 'lenet5', 32, 128),
            'train ResNet-50': partial(first_step, 'resnet50', 224, 2),
            **{name: partial(_twice, words) for name, words in commands.items()},
        }
        for name, start in starts.items():
            # Without compilation, the second start is like the first.
            taken = [start() for _ in range(rounds)]
            for cache, some in zip(('cold', 'warm'), zip(*taken, strict=True), strict=True):
                if cache == 'warm' or not name.endswith('--help'):
                    rows.append(_row(name, cache, _median(some), imports))
                    print(f'{name}, {cache}: {rows[-1]["cpu"]:.2f} CPU s', file=sys.stderr)
    return rows


def first_step(model: str, image_size: int, batch_size: int) -> list[Taken]:
    """Starts a training run on synthetic images twice, until its first step.

    Returns:
      The time with an empty compilation cache and with the cache that the first process filled. The
      last line is JSON of the seconds by part: `import`, `setup` (configuration, data, checks),
      `trace` (to MLIR), `compile` (or reading the cache), and `step` (the rest).
    """
    words = [*python(_START), model, str(image_size), str(batch_size)]
    return _twice(words, lambda: [str(time.time())])


def take_one_step(model: str, image_size: int, batch_size: int, started: float) -> None:
    """Starts a run in a temporary folder; prints its parts and ends after the first step.

    Args:
      model: the model's name in the registry.
      image_size: pixels.
      batch_size: the global batch size.
      started: the start of the process, in seconds since 1970.
    """
    with tempfile.TemporaryDirectory() as workdir:
        train(synthetic_config(model, image_size, batch_size), workdir, [_First(started)])


class _First(Hook):
    """Hook that prints the seconds by part, and ends the process after its first step."""

    def __init__(self, started: float):
        self._all, self._backend = Compilations(), Compilations('backend_compile')
        self._began, self._parts = time.time(), {'import': time.time() - started}

    def start(self, step: int) -> None:
        self._compiled = self._all.take(), self._backend.take()
        self._started = time.time()

    def after_step(self, step: int, batch: Any, metrics: Any) -> None:
        jax.block_until_ready(metrics)
        seconds = time.time() - self._started
        # Before the steps, the program that makes the parameters is compiled.
        later = self._all.take(), self._backend.take()
        both, backend = (sum(pair) for pair in zip(self._compiled, later, strict=True))
        self._parts['setup'] = self._started - self._began - self._compiled[0]
        self._parts |= {'trace': both - backend, 'compile': backend, 'step': seconds - later[0]}
        print(json.dumps(self._parts), flush=True)
        # Exit at once: the time to shut down does not belong to the measurement.
        os._exit(0)


def make_run(workdir: str) -> None:
    """Trains ResNet-50 for one step, as a run to predict with."""
    config = synthetic_config('resnet50', 224, 2)
    config.data.num_examples = 2
    config.training.duration = '1 steps'
    config.evaluation.batch_size = 2
    train(config, workdir)


def _command(name: str, *words: str) -> list[str]:
    return [sys.executable, '-m', f'experiments.{name}', *words]


def _twice(words: Sequence[str], more: Callable[[], list[str]] = list) -> list[Taken]:
    """Runs a command with an empty compilation cache, and again.

    Args:
      words: the command line.
      more: returns further words when the process starts.
    """
    with tempfile.TemporaryDirectory() as cache:
        # The project's compilation cache is below XDG_CACHE_HOME.
        environment = os.environ | {'XDG_CACHE_HOME': cache}
        environment.pop('JAX_COMPILATION_CACHE_DIR', None)
        return [_spent([*words, *more()], environment) for _ in range(2)]


def _spent(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Taken:
    """Runs a command from the repository; raises UserError if it fails."""
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            words, cwd=_REPO, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        last = output.read().decode().strip().rpartition('\n')[2]
    if process.returncode:
        raise UserError(f'{" ".join(words)}: {last}')
    return Taken(seconds, usage.ru_utime + usage.ru_stime, last)


def _median(taken: Sequence[Taken]) -> Taken:
    """Returns the medians of seconds and CPU seconds, and the parts of the median process."""
    middle = sorted(taken)[len(taken) // 2]
    return Taken(
        statistics.median(t.seconds for t in taken),
        statistics.median(t.cpu for t in taken),
        middle.last,
    )


def _row(name: str, cache: str, taken: Taken, imports: Taken) -> dict[str, Any]:
    return {
        'command': name,
        'cache': cache,
        'seconds': taken.seconds,
        'cpu': taken.cpu,
        'beyond': taken.seconds - imports.seconds,
        'beyond_cpu': taken.cpu - imports.cpu,
        'parts': json.loads(taken.last) if taken.last.startswith('{') else None,
    }
