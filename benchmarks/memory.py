"""Peak resident memory of training on a CPU, in turn with PyTorch; each in its own process."""

import json
import resource
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import throughput
from benchmarks.turns import Store, python, run_process

_OURS = """
from benchmarks.memory import peak
print(peak(sys.argv[1], *map(int, sys.argv[2:])))
"""
_STEPS = 3


def memory(
    models: Sequence[str],
    batch_size: int,
    peers: Sequence[str],
    peer_python: str | None,
    peer_env: Mapping[str, str] | None = None,
    store: Store | None = None,
) -> list[dict[str, Any]]:
    """Measures a few steps of each model in float32, with SGD and momentum.

    Ours is the training loop on synthetic images in memory; a peer takes its steps on one batch.

    Args:
      models: some of `throughput.SIZES`.
      batch_size: images in a batch.
      peers: some of `throughput.PEERS`, each measured in both memory formats.
      peer_python: the Python in which the peers are installed.
      peer_env: the environment variables of the peers; None for those of this process.
      store: keeps the readings; None to take all of them.

    Returns:
      One row for each measurement: `model`, `batch`, `form`, `peak_mib` (the largest resident memory
      of the process), `ratio` (ours over it), and for ours `start_mib` (resident before the first
      step is compiled) and `temp_mib` (XLA's temporary memory of a step, without that of oneDNN).

    Raises:
      UserError: a model or a peer is unknown, or a process failed.
    """
    throughput.check_names('train', models, ['float32'], peers)
    kept, rows = store or Store(), []
    for model in models:
        size, channels, _ = throughput.SIZES[model]
        shape = list(map(str, (size, channels, batch_size)))
        # Ours first, then each peer in each of its forms.
        commands = {('ours', ''): [*python(_OURS), model, *shape]}
        for peer, memory in throughput.forms(peers, model, 'cpu'):
            command = throughput.peer_command(peer, peer_python, memory)
            words = ['train', model, 'float32', *shape, str(_STEPS - 2)]
            commands[peer, memory] = [*command, *words]
        ours: float | None = None
        for key, command in commands.items():
            env = None if ours is None else peer_env
            reading = kept.get(['memory', model, *shape, *key], partial(run_process, command, env))
            ours = ours or reading['peak_mib']
            rows.append(
                {
                    'model': model,
                    'batch': batch_size,
                    'form': reading.get('form', 'ours'),
                    'start_mib': reading.get('start_mib'),
                    'temp_mib': reading.get('temp_mib'),
                    'peak_mib': reading['peak_mib'],
                    'ratio': ours / reading['peak_mib'],
                }
            )
    return rows


def peak(model: str, size: int, channels: int, batch_size: int) -> str:
    """Trains for a few steps in this process, and returns its memory as JSON."""
    from benchmarks.loop import loop_rate, synthetic_config
    from benchmarks.scaling import compile_step
    from vision.training.hooks import Hook

    marks: dict[str, float] = {}

    class Start(Hook):
        def start(self, step: int) -> None:
            marks['start_mib'] = _peak_mib()

    config = synthetic_config(model, size, batch_size)
    config.data.num_examples, config.data.channels = 4 * batch_size, channels
    config.data.num_classes = throughput.classes(size)
    loop_rate(config, _STEPS - 1, 1, [Start()])
    marks['peak_mib'] = _peak_mib()
    # XLA's figure comes last, because compiling takes memory, too.
    arguments = {k: v for k, v in config.model.items() if k != 'name'}
    found = compile_step(model, size, batch_size, channels, **arguments).memory_analysis()
    return json.dumps({**marks, 'temp_mib': found.temp_size_in_bytes / 2**20})


def _peak_mib() -> float:
    """Returns the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
