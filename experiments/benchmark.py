"""Measures speed, here and in a peer, in turn.

    python -m experiments.benchmark train|infer [--models=resnet50,…] [--dtypes=float32,bfloat16]
        [--peer=torchvision --peer_python=PATH] [--rounds=3] [--format=json]
    python -m experiments.benchmark input [--peer=torchvision --peer_python=PATH]
    python -m experiments.benchmark loop
    python -m experiments.benchmark startup
    python -m experiments.benchmark search

train, infer: a step of each model on a batch that is on the device, and the peer's, in processes of
their own, in turn, images per second. The peer's Python: `python -m venv peer && peer/bin/pip install
torch torchvision`, then `--peer_python=peer/bin/python`.
input: training batches from JPEGs, images per second. loop: the loop against its bare jitted step,
ResNet-20 on synthetic images, images per second. startup: seconds from the start of a process to the
first step of LeNet-5 and of ResNet-50, with an empty compilation cache and again.
search: 100,000 clustered vectors of 512 floats, recall@10 of the graph and milliseconds a query.
"""

import json
from typing import Any, Literal

from absl import flags

from vision.core import cli
from vision.core.errors import UserError, unknown

MODELS = flags.DEFINE_list('models', None, 'of train and infer; all that are known')
DTYPES = flags.DEFINE_list('dtypes', ['float32'], 'of train and infer: float32, bfloat16')
PEER = flags.DEFINE_string('peer', None, 'torchvision, to compare with it')
PEER_PYTHON = flags.DEFINE_string('peer_python', None, 'the Python that has the peer')
ROUNDS = flags.DEFINE_integer('rounds', 3, 'how often each is measured', 1)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'what to print')


def _input() -> dict[str, Any]:
    from vision.preprocess.benchmark import benchmark

    return benchmark(PEER.value, PEER_PYTHON.value, ROUNDS.value)


def _speed(mode: Literal['train', 'infer']) -> list[dict[str, Any]]:
    from vision.training import speed

    models = list(speed.SIZES) if MODELS.value is None else MODELS.value
    peer = PEER.value, PEER_PYTHON.value
    return speed.compare(mode, models, DTYPES.value, *peer, ROUNDS.value)


def _loop() -> dict[str, Any]:
    from vision.training.benchmark import loop_speed

    return loop_speed(rounds=ROUNDS.value)


def _startup() -> list[dict[str, Any]]:
    from vision.training.benchmark import startup

    return [startup('lenet5', 32, 128), startup('resnet50', 224, 2)]


def _search() -> dict[str, Any]:
    from vision.prediction.benchmark import benchmark

    return benchmark()


BENCHMARKS = {
    'train': lambda: _speed('train'),
    'infer': lambda: _speed('infer'),
    'input': _input,
    'loop': _loop,
    'startup': _startup,
    'search': _search,
}


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
    if isinstance(result, dict):
        for name, value in result.items():
            print(f'{name:>12}  {_show(value)}')
        return
    names = [name for name in result[0] if name != 'rounds']
    for row in [{name: name for name in names}, *result]:
        print('  '.join(f'{_show(row[name]):>10}' for name in names))


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.2f}'
    return '-' if value is None else str(value)


if __name__ == '__main__':
    cli.run(main)
