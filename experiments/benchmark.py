"""Measures speed, here and in a peer, in turn.

    python -m experiments.benchmark input [--peer=torchvision --peer_python=PATH] [--format=json]
    python -m experiments.benchmark train
    python -m experiments.benchmark startup
    python -m experiments.benchmark search

input: training batches from JPEGs, images per second. train: the loop against its bare jitted step,
ResNet-20 on synthetic images, images per second. startup: seconds from the start of a process to the
first step of ResNet-50, with an empty compilation cache and again.
search: 100,000 clustered vectors of 512 floats, recall@10 of the graph and milliseconds a query.
"""

import json
from typing import Any

from absl import flags

from vision.core import cli
from vision.core.errors import UserError, unknown

PEER = flags.DEFINE_string('peer', None, 'torchvision, to compare with it')
PEER_PYTHON = flags.DEFINE_string('peer_python', None, 'the Python that has the peer')
ROUNDS = flags.DEFINE_integer('rounds', 3, 'how often each is measured', 1)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'what to print')


def _input() -> dict[str, Any]:
    from vision.preprocess.benchmark import benchmark

    return benchmark(PEER.value, PEER_PYTHON.value, ROUNDS.value)


def _train() -> dict[str, Any]:
    from vision.training.benchmark import loop_speed

    return loop_speed(rounds=ROUNDS.value)


def _startup() -> dict[str, Any]:
    from vision.training.benchmark import startup

    return startup()


def _search() -> dict[str, Any]:
    from vision.prediction.benchmark import benchmark

    return benchmark()


BENCHMARKS = {'input': _input, 'train': _train, 'startup': _startup, 'search': _search}


def main(argv: list[str]) -> None:
    """Runs one benchmark and prints its figures."""
    if len(argv) != 2:
        raise UserError(f'name one benchmark: {", ".join(BENCHMARKS)}')
    if argv[1] not in BENCHMARKS:
        raise unknown('benchmark', argv[1], BENCHMARKS)
    result = BENCHMARKS[argv[1]]()
    if FORMAT.value == 'json':
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f'{name:>12}  {value:.2f}' if isinstance(value, float) else f'{name:>12}  {value}')


if __name__ == '__main__':
    cli.run(main)
