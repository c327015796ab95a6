"""Measures speed, here and in a peer, in turn.

    python -m experiments.benchmark train|infer [--models=resnet50,…] [--dtypes=float32,bfloat16]
        [--peer=torchvision|onnxruntime --peer_python=PATH] [--rounds=3] [--format=json]
    python -m experiments.benchmark input [--peer=torchvision --peer_python=PATH]
    python -m experiments.benchmark race [--mnist=FOLDER] [--peer=torchvision --peer_python=PATH]
    python -m experiments.benchmark gpu [--peer=torchvision --peer_python=PATH] [--batch_size=256] [--tiny]
    python -m experiments.benchmark end_to_end
    python -m experiments.benchmark loop
    python -m experiments.benchmark startup
    python -m experiments.benchmark scaling
    python -m experiments.benchmark predict [--models=resnet18,…]
    python -m experiments.benchmark search

train, infer: a step of each model on a batch that is on the device, and the peer's, in processes of
their own, in turn, images per second. The peer's Python: `python -m venv peer && peer/bin/pip install
torch torchvision` (and `onnx onnxscript onnxruntime`), then `--peer_python=peer/bin/python`.
input: training batches from JPEGs, images per second.
race: seconds from the start of a process to 99 % on MNIST's test set, LeNet-5, ours and plain
PyTorch. MNIST is TFDS's, or the four IDX files in FOLDER.
gpu: all that a GPU is measured by, each once: ResNet-50's training step and inference with MFU, epochs
of LeNet-5 and ResNet-20, in bfloat16 and float32. Meant to take less than eight minutes: most of them
compile, once. --tiny tries it anywhere, at sizes that say nothing.
end_to_end: training ResNet-18 from JPEG files and on synthetic images, images per second.
loop: the loop against its bare jitted step, ResNet-20 on synthetic images, images per second.
startup: seconds from the start of a process to the first step of LeNet-5 and of ResNet-50, with an
empty compilation cache and again.
scaling: images per second by batch size, memory by depth with and without recomputing, and XLA's
count of a ResNet-50 step.
predict: classifying JPEG files (500×375, models of 224 pixels), the decoder alone and the model alone, images per second.
search: 100,000 clustered vectors of 512 floats, recall@10 of the graph and milliseconds a query.
"""

import json
from typing import Any, Literal

from absl import flags

from vision.core import cli, startup
from vision.core.errors import UserError, unknown

MODELS = flags.DEFINE_list(
    'models', None, 'of train, infer and predict; all that are known (predict: resnet18)'
)
DTYPES = flags.DEFINE_list('dtypes', ['float32'], 'of train and infer: float32, bfloat16')
PEER = flags.DEFINE_string('peer', None, 'torchvision, or onnxruntime of infer: to compare with it')
PEER_PYTHON = flags.DEFINE_string('peer_python', None, 'the Python that has the peer')
ROUNDS = flags.DEFINE_integer('rounds', 3, 'how often each is measured (gpu: once)', 1)
MNIST = flags.DEFINE_string('mnist', None, "of race: the folder of MNIST's IDX files; else TFDS")
BATCH_SIZE = flags.DEFINE_integer('batch_size', 256, "of gpu: ResNet-50's", 1)
TINY = flags.DEFINE_bool('tiny', False, 'of gpu: small sizes, to see that it runs')
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'what to print')


def _input() -> dict[str, Any]:
    from vision.preprocess.benchmark import benchmark

    return benchmark(PEER.value, PEER_PYTHON.value, ROUNDS.value)


def _speed(mode: Literal['train', 'infer']) -> list[dict[str, Any]]:
    from vision.training import speed

    models = list(speed.SIZES) if MODELS.value is None else MODELS.value
    peer = PEER.value, PEER_PYTHON.value
    environment = startup.shipped_environment()
    return speed.compare(mode, models, DTYPES.value, *peer, ROUNDS.value, environment)


def _race() -> dict[str, Any]:
    from vision.training.race import race

    environment = startup.shipped_environment()
    return race(MNIST.value, PEER.value, PEER_PYTHON.value, ROUNDS.value, environment)


def _gpu() -> list[dict[str, Any]]:
    from vision.training import speed
    from vision.training.accelerator import accelerator

    if PEER.value not in (None, 'torchvision'):
        raise UserError(f'--peer={PEER.value}: gpu is compared with torchvision only')
    peer = speed.peer_command(PEER.value, PEER_PYTHON.value) if PEER.value else None
    return accelerator(BATCH_SIZE.value, TINY.value, peer, startup.shipped_environment())


def _end_to_end() -> dict[str, Any]:
    from vision.training.benchmark import end_to_end

    return end_to_end(rounds=ROUNDS.value)


def _scaling() -> dict[str, Any]:
    from vision.training.scaling import scaling

    return scaling()


def _loop() -> dict[str, Any]:
    from vision.training.benchmark import loop_speed

    return loop_speed(rounds=ROUNDS.value)


def _startup() -> list[dict[str, Any]]:
    from vision.training.benchmark import startup

    return [startup('lenet5', 32, 128), startup('resnet50', 224, 2)]


def _predict() -> list[dict[str, Any]]:
    from vision.prediction.benchmark import predict_speed

    return [predict_speed(name, ROUNDS.value) for name in MODELS.value or ['resnet18']]


def _search() -> dict[str, Any]:
    from vision.prediction.benchmark import search_speed

    return search_speed()


BENCHMARKS = {
    'train': lambda: _speed('train'),
    'infer': lambda: _speed('infer'),
    'input': _input,
    'race': _race,
    'gpu': _gpu,
    'end_to_end': _end_to_end,
    'loop': _loop,
    'startup': _startup,
    'scaling': _scaling,
    'predict': _predict,
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
    print(_text(result))


def _text(result: Any) -> str:
    """A table of rows; of a dict a line for each figure, and its tables."""
    if isinstance(result, list):
        names = [name for name in result[0] if name != 'rounds']
        rows = [{name: name for name in names}, *result]
        return '\n'.join('  '.join(f'{_show(row[name]):>12}' for name in names) for row in rows)
    parts = []
    for name, value in result.items():
        is_table = isinstance(value, list) and value and isinstance(value[0], dict)
        parts.append(f'{name}\n{_text(value)}' if is_table else f'{name:>12}  {_show(value)}')
    return '\n'.join(parts)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.4g}' if abs(value) < 1 else f'{value:,.2f}'
    if isinstance(value, dict):
        return ', '.join(f'{name} {_show(part)}' for name, part in value.items())
    if isinstance(value, list):
        return ' '.join(map(_show, value))
    return '-' if value is None else str(value)


if __name__ == '__main__':
    cli.run(main)
