"""Measures the speed of this project and of another library (the peer), in alternation.

    python -m benchmarks NAME [--rounds=3] [--format=json]

    throughput [train|infer]   training steps and inference of each model, on a batch on the device,
                 one row for each peer; with --output=FOLDER a stopped table continues
    race         seconds from the start of a process to 99 % on MNIST's test set, with LeNet-5
    input        training batches from JPEGs, images per second
    end_to_end   training ResNet-18 from JPEG files and on synthetic images, images per second
    predict      classifying JPEG files (500×375, for 224 pixels); the decoder and the model alone
    startup      seconds and CPU seconds from the start of a process to the first step of LeNet-5 and
                 of ResNet-50, and of other commands, with an empty compilation cache and again
    loop         the training loop and its bare jitted step, ResNet-20 on synthetic images
    scaling      images per second by batch size, memory by depth with and without recomputing, and
                 XLA's count of a ResNet-50 step
    memory       peak resident memory of training ResNet-50 (or --models) with batches of 32
    growth       one page of curves: speed and time by batch size, classes, examples, vectors, depth
                 and files; the page and the readings are in --output
    search       recall@10, ms per query and memory of each kind of index, and ms per query of faiss
                 itself; vectors of the photos in --photos and others that resemble them
    copies       finding copies of the photos in --photos: micro-AP of thumbnails, hashes, vectors
                 with each option, and local features; a second run continues
    serve        a server and 1, 8 and 32 clients on this machine: images/s over those of predict,
                 latency, and whether each client gets the answer for its own photo
    gpu [PART…]  measurements for a GPU, each once, in parts of less than four minutes: resnet50
                 (its training step with MFU, with both forms of BatchNorm), inference, epochs (of
                 LeNet-5 and ResNet-20, with many steps in a call and with one), attention (ViT-S/16
                 with and without the fused one, ConvNeXt-T)

Examples:
    python -m benchmarks throughput infer --models=resnet50,vgg16 --dtypes=float32,bfloat16
    python -m benchmarks race --mnist=FOLDER --peer=torchvision --peer_python=peer/bin/python

Peers need their own Python: `python -m venv peer && peer/bin/pip install torch torchvision timm`
(for onnxruntime also `onnx onnxscript onnxruntime`). torchvision and timm run eagerly; on CPUs the
faster of both memory formats counts.
"""

from collections.abc import Callable
from typing import Any, Literal

from absl import flags

from benchmarks.turns import Store
from vision.core import cli, startup
from vision.core.errors import UserError, unknown
from vision.core.text import as_path, json_text

ROUNDS = flags.DEFINE_integer('rounds', 3, 'How often each is measured (gpu: once).', 1)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the figures are printed.')
cli.heading('The peer, in throughput, race, input, memory and gpu')
PEER = flags.DEFINE_list(
    'peer',
    [],
    'torchvision, to be measured in turn; in throughput one or more of torchvision, timm, '
    'torch.compile and, for inference, onnxruntime.',
)
PEER_PYTHON = flags.DEFINE_string('peer_python', None, 'Python that has the peers.')
cli.heading('Single benchmarks')
MODELS = flags.DEFINE_list(
    'models',
    None,
    'throughput, memory, predict, serve, search: models (default: all; resnet50; resnet18; '
    'efficientnet_lite0).',
)
DTYPES = flags.DEFINE_list('dtypes', ['float32'], 'throughput: float32, bfloat16 or both.')
MNIST = flags.DEFINE_string('mnist', None, "race: folder of MNIST's IDX files (default: TFDS's).")
SECONDS = flags.DEFINE_float('seconds', 60.0, 'serve: seconds of the 32 clients.', 1.0)
BATCH_SIZE = flags.DEFINE_integer(
    'batch_size', None, 'gpu, memory: batch size (default: 256; 32).', 1
)
PHOTOS = flags.DEFINE_string('photos', None, 'copies, search: folder of photos.')
VECTORS = flags.DEFINE_integer('vectors', 100_000, 'search: number of vectors.', 1000)
KINDS = flags.DEFINE_list('kinds', None, 'search: exact, hnsw, ivfpq (default: all).')
OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Folder. throughput, memory: the readings; growth: also the page (default: runs/growth); '
    'copies: the table and pictures (default: runs/copies).',
)
EACH = flags.DEFINE_integer('each', 50, 'copies: see --each of experiments.search.', 1)
QUICK = flags.DEFINE_bool('quick', False, 'growth: a few small sizes, in three minutes.')
TINY = flags.DEFINE_bool(
    'tiny', False, 'gpu: small sizes, to see that it runs; figures mean nothing.'
)

MODES: tuple[Literal['train', 'infer'], ...] = ('train', 'infer')


def _throughput(*words: str) -> list[dict[str, Any]]:
    from benchmarks import throughput

    for word in words:
        if word not in MODES:
            raise unknown('mode of throughput', word, MODES)
    models = list(throughput.SIZES) if MODELS.value is None else MODELS.value
    # Peers start with the environment of the shell, without the settings that this project tunes.
    others = PEER_PYTHON.value, ROUNDS.value, startup.shipped_environment(), _store()
    # In a table of both modes, training leaves out peers that can only infer.
    only_infer = set(throughput.PEERS['infer']) - set(throughput.PEERS['train'])
    rows = []
    for mode in (mode for mode in MODES if mode in words or not words):
        leaves_out = only_infer if mode == 'train' and not words else ()
        peers = [peer for peer in PEER.value if peer not in leaves_out] or PEER.value
        rows += throughput.compare(mode, models, DTYPES.value, peers, *others)
    return rows


def _store() -> Store:
    """Returns the readings in --output, or none."""
    return Store(None if OUTPUT.value is None else as_path(OUTPUT.value))


def _peer() -> str | None:
    """Returns the peer of a benchmark that has only one."""
    if len(PEER.value) > 1:
        raise UserError(f'--peer={",".join(PEER.value)}: name one; only throughput takes several')
    return PEER.value[0] if PEER.value else None


def _race() -> dict[str, Any]:
    from benchmarks.race import race

    environment = startup.shipped_environment()
    return race(MNIST.value, _peer(), PEER_PYTHON.value, ROUNDS.value, environment)


def _input() -> dict[str, Any]:
    from benchmarks.input import input_speed

    return input_speed(_peer(), PEER_PYTHON.value, ROUNDS.value)


def _end_to_end() -> dict[str, Any]:
    from benchmarks.loop import end_to_end

    return end_to_end(rounds=ROUNDS.value)


def _predict() -> list[dict[str, Any]]:
    from benchmarks.predict import predict_speed

    return [predict_speed(name, ROUNDS.value) for name in MODELS.value or ['resnet18']]


def _startup() -> list[dict[str, Any]]:
    from benchmarks.startup import startup

    return startup(ROUNDS.value)


def _loop() -> dict[str, Any]:
    from benchmarks.loop import loop_speed

    return loop_speed(rounds=ROUNDS.value)


def _scaling() -> dict[str, Any]:
    from benchmarks.scaling import scaling

    return scaling()


def _memory() -> list[dict[str, Any]]:
    from benchmarks.memory import memory

    models, environment = MODELS.value or ['resnet50'], startup.shipped_environment()
    peers, size = (PEER.value, PEER_PYTHON.value), BATCH_SIZE.value or 32
    return memory(models, size, *peers, environment, _store())


def _growth() -> list[dict[str, Any]]:
    from benchmarks.growth import growth

    return growth(as_path(OUTPUT.value or 'runs/growth'), QUICK.value)


def _search() -> dict[str, Any]:
    from benchmarks import search

    names = KINDS.value or search.KINDS
    for name in names:
        if name not in search.KINDS:
            raise unknown('kind', name, search.KINDS)
    if PHOTOS.value is None:
        mixture = search.clusters(VECTORS.value)
    else:
        model = (MODELS.value or ['efficientnet_lite0'])[0]
        mixture = search.fitted(search.of_photos(PHOTOS.value, model))
    return search.search_speed(mixture, VECTORS.value, names, rounds=ROUNDS.value)


def _copies() -> list[dict[str, Any]]:
    from benchmarks.copies import compare

    cli.require(photos=PHOTOS.value)
    rows = compare(PHOTOS.value or '', 0, EACH.value, as_path(OUTPUT.value or 'runs/copies'))
    shown = ('method', 'micro_ap', 'recall@p90', 'found', 'precision', 'recall', 'seconds')
    return [{name: row[name] for name in shown} for row in rows]


def _serve() -> Any:
    from benchmarks.serve import serve_speed

    names = MODELS.value or ['efficientnet_lite0']
    rows = [serve_speed(name, SECONDS.value) for name in names]
    return rows[0] if len(rows) == 1 else rows


def _gpu(*parts: str) -> list[dict[str, Any]]:
    from benchmarks import throughput
    from benchmarks.gpu import gpu

    name, known = _peer(), ('torchvision', 'torch.compile')
    if name is not None and name not in known:
        raise UserError(f'--peer={name}: gpu can only be compared with {" or ".join(known)}')
    peer = throughput.peer_command(name, PEER_PYTHON.value) if name else None
    batch_size = BATCH_SIZE.value or 256
    return gpu(parts, batch_size, TINY.value, peer, startup.shipped_environment())


BENCHMARKS: dict[str, Callable[..., Any]] = {
    'throughput': _throughput,
    'race': _race,
    'input': _input,
    'end_to_end': _end_to_end,
    'predict': _predict,
    'startup': _startup,
    'loop': _loop,
    'scaling': _scaling,
    'memory': _memory,
    'growth': _growth,
    'search': _search,
    'copies': _copies,
    'serve': _serve,
    'gpu': _gpu,
}


def main(argv: list[str]) -> None:
    """Runs one benchmark and prints its figures."""
    if len(argv) < 2:
        raise UserError(f'name one benchmark: {", ".join(BENCHMARKS)}')
    # Only throughput takes a second word, its mode.
    name, *words = argv[1:]
    if name not in BENCHMARKS:
        raise unknown('benchmark', name, BENCHMARKS)
    if len(words) > (name == 'throughput'):
        raise UserError(f'unexpected argument {words[-1]!r}; options are --name=value, see --help')
    result = BENCHMARKS[name](*words)
    if FORMAT.value == 'json':
        print(json_text(result))
        return
    print(_text(result))


def _text(result: Any) -> str:
    """Returns a list of rows as a table, and a dict as a line for each entry."""
    if isinstance(result, list):
        # The single readings are only part of the JSON.
        names = [name for name in result[0] if name != 'rounds']
        columns = [[name, *(_show(row[name]) for row in result)] for name in names]
        wide = [[f'{cell:>{max(map(len, cells))}}' for cell in cells] for cells in columns]
        return '\n'.join('  '.join(row) for row in zip(*wide, strict=True))
    # A list of rows inside a dict becomes a table below its name.
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
