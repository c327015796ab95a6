"""Throughput of training and inference by model, in turn with peer libraries.

Each measurement runs in its own process.
"""

import collections
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.turns import Store, python, run_process
from vision.core.errors import UserError

Mode = Literal['train', 'infer']
# The arguments of `measure`: mode, model, dtype, pixels, channels, batch size.
Words = tuple[Mode, str, str, int, int, int]

# Pixels, channels and batch size of each model, as in the tables of `docs/performance.md`.
SIZES = {
    'resnet50': (224, 3, 16),
    'resnet18': (224, 3, 16),
    'googlenet': (224, 3, 16),
    'vgg16': (224, 3, 8),
    'alexnet': (224, 3, 32),
    'lenet5': (28, 1, 128),
    'vit_s16': (224, 3, 16),
    'convnext_tiny': (224, 3, 16),
    'efficientnet_b0': (224, 3, 16),
    'efficientnet_lite0': (224, 3, 16),
}
PEERS: dict[Mode, tuple[str, ...]] = {
    'train': ('torchvision', 'timm', 'torch.compile'),
    'infer': ('torchvision', 'timm', 'torch.compile', 'onnxruntime'),
}
FORMATS = ('contiguous_format', 'channels_last')  # PyTorch's memory formats
NOT_IN_TIMM = ('lenet5', 'alexnet', 'googlenet')
_PEER = Path(__file__).with_name('torch_throughput.py')
_OURS = """
from benchmarks.throughput import measure
print(measure(*sys.argv[1:4], *map(int, sys.argv[4:])))
"""
# Peak FLOP/s of dense bfloat16 products, from the data sheets; a key is a part of a device's name.
PEAKS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L4': 121e12, 'TPU v4': 275e12}
_SECONDS = 6.0  # minimum time of the measurement
_STEPS = 5  # minimum number of timed steps


def compare(
    mode: Mode,
    models: Sequence[str],
    dtypes: Sequence[str],
    peers: Sequence[str],
    peer_python: str | None,
    rounds: int,
    peer_env: Mapping[str, str] | None = None,
    store: Store | None = None,
) -> list[dict[str, Any]]:
    """Measures each model of this project and of the peers in turn.

    On CPUs, PyTorch is measured in both of its memory formats, and the faster one counts.

    Args:
      mode: 'train' (one update of the parameters) or 'infer' (probabilities, with BatchNorm
        folded).
      models: some of `SIZES`.
      dtypes: 'float32' and 'bfloat16' (autocast in PyTorch).
      peers: some of `PEERS`. 'torchvision' and 'timm' run eagerly; 'torch.compile' compiles
        torchvision's model in the default mode, and 'onnxruntime' (inference only) runs it
        exported. timm's model replaces one that torchvision lacks.
      peer_python: the Python in which the peers are installed.
      rounds: the number of processes of each.
      peer_env: the environment variables of the peers; None for those of this process.
      store: keeps the readings; None to take all of them.

    Returns:
      One row for each model, dtype and peer: `ours` and `peer` (images/s, medians over the rounds),
      their `ratio`, `against` (the peer's name), `form` (its library and memory format), `spread`
      (the largest of our readings over the smallest), `first` and `peer_first` (the seconds of the
      first step, which include compilation; the largest of the rounds, since later ones use
      caches), `mfu` (the model's FLOP/s over the device's peak; None if the peak is unknown), and
      all readings under `rounds`. A peer without such a model has no figures.

    Raises:
      UserError: a model, dtype or peer is unknown, or a process failed.
    """
    check_names(mode, models, dtypes, peers)
    rows = []
    against: Sequence[str | None] = peers or [None]
    for model in models:
        for dtype in dtypes:
            words = mode, model, dtype, *SIZES[model]
            readings = _readings(words, peers, peer_python, rounds, peer_env, store or Store())
            rows += [_row(words, readings, peer) for peer in against]
    return rows


def check_names(
    mode: Mode, models: Sequence[str], dtypes: Sequence[str], peers: Sequence[str]
) -> None:
    """Raises UserError for an unknown model, dtype or peer, before the first measurement."""
    if not models or not dtypes:
        raise UserError('--models or --dtypes is empty; name at least one')
    for name, values, known in [
        ('models', models, SIZES),
        ('dtypes', dtypes, ('float32', 'bfloat16')),
        ('peer', peers, PEERS[mode]),
    ]:
        for value in values:
            if value not in known:
                raise UserError(
                    f'--{name}: {value!r} is unknown in {mode}; known: {", ".join(known)}'
                )
    if 'onnxruntime' in peers and 'bfloat16' in dtypes:
        raise UserError('--dtypes: ONNX Runtime can only be measured in float32')


def forms(peers: Sequence[str], model: str, device: str) -> list[tuple[str, str]]:
    """Returns each (peer, memory format) that a model is measured in; none if timm lacks it.

    On CPUs, PyTorch has both formats. ONNX Runtime chooses its own, and GPUs are fast with channels
    last only.
    """
    return [
        (peer, memory)
        for peer, memory in itertools.product(peers, FORMATS)
        if memory == FORMATS[device != 'cpu'] or (device == 'cpu' and peer != 'onnxruntime')
        if peer != 'timm' or model not in NOT_IN_TIMM
    ]


def peer_command(peer: str, python: str | None, memory: str = 'channels_last') -> list[str]:
    """Returns the command line of a peer; the arguments of `measure` must be appended to it.

    Args:
      peer: one of `PEERS`.
      python: the Python in which the peer is installed.
      memory: one of `FORMATS`.
    """
    return [python or 'python', str(_PEER), peer, memory]


def _readings(
    words: Words,
    peers: Sequence[str],
    peer_python: str | None,
    rounds: int,
    peer_env: Mapping[str, str] | None,
    store: Store,
) -> dict[tuple[str, ...], list[Any]]:
    """Takes the readings of one model and dtype.

    Returns:
      The readings of the rounds by (peer, memory format), and ours by ('ours',).
    """
    # Measure this project and the peers in turn, so that drifts of the machine affect all.
    readings: dict[tuple[str, ...], list[Any]] = collections.defaultdict(list)
    for number in range(rounds):
        ours = store.get([*words, 'ours', number], partial(measure_apart, *words))
        readings['ours',].append(ours)
        for peer, memory in forms(peers, words[1], ours['device']):
            command = peer_command(peer, peer_python, memory)
            measure = partial(measure_apart, *words, peer=command, env=peer_env)
            key = [*words, peer, memory, number]
            readings[peer, memory].append(store.get(key, measure))
    return readings


def _row(
    words: Words, readings: Mapping[tuple[str, ...], list[Any]], peer: str | None
) -> dict[str, Any]:
    """Returns the row of one model, dtype and peer."""
    mode, model, dtype, _, _, batch = words
    ours = readings['ours',]
    # Medians over the rounds; the peer's faster memory format counts.
    both = [some for key, some in readings.items() if key[0] == peer]
    theirs = max(both, key=_median) if both else []
    rate, other = _median(ours), _median(theirs) if theirs else None
    return {
        'model': model,
        'mode': mode,
        'dtype': dtype,
        'batch': batch,
        'ours': rate,
        'peer': other,
        'ratio': rate / other if other else None,
        'against': peer,
        'form': theirs[0]['form'] if theirs else None,
        'spread': max(map(_rate, ours)) / min(map(_rate, ours)),
        'first': max(reading['first'] for reading in ours),
        'peer_first': max((reading['first'] for reading in theirs), default=None),
        'mfu': mfu(ours[0], rate),
        'device': ours[0]['device'],
        'rounds': {'ours': list(map(_rate, ours)), 'peer': list(map(_rate, theirs))},
    }


def _rate(reading: Mapping[str, Any]) -> float:
    return reading['rate']


def _median(readings: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(map(_rate, readings))


def show(who: str, mode: str, model: str, dtype: str, reading: Mapping[str, Any]) -> None:
    """Prints one reading on stderr as soon as it is available."""
    speed = f'{reading["rate"]:,.2f} images/s'
    print(f'{model}, {mode}, {dtype}: {who} {speed}', file=sys.stderr, flush=True)


def mfu(reading: Mapping[str, Any], rate: float) -> float | None:
    """Returns the FLOP/s at `rate` images/s over the device's bfloat16 peak, or None if unknown."""
    return reading['flops_per_image'] * rate / reading['peak'] if reading['peak'] else None


def measure_apart(
    mode: Mode,
    model: str,
    dtype: str,
    size: int,
    channels: int,
    batch: int,
    peer: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs `measure`, or the command of a peer, in its own process with the environment `env`."""
    command = peer or python(_OURS)
    reading = run_process([*command, mode, model, dtype, *map(str, (size, channels, batch))], env)
    show(reading['form'] if peer else 'ours', mode, model, dtype, reading)
    return reading


def measure(
    mode: Mode,
    model: str,
    dtype: str,
    size: int,
    channels: int,
    batch: int,
    num_classes: int | None = None,
) -> str:
    """Measures one model in this process.

    Args:
      mode: 'train' or 'infer'.
      model: the model's name in the registry.
      dtype: the dtype of the computation.
      size: pixels.
      channels: the number of channels.
      batch: the batch size.
      num_classes: the number of classes; None for that of `classes(size)`.

    Returns:
      JSON with `rate` (images/s, from the median time of a step), `first` (the seconds of the first
      step, with its compilation), `device`, `peak` (the device's FLOP/s or null) and
      `flops_per_image` (two for each multiply-add of the forward pass; three times as many in
      training).
    """
    import jax

    from vision.models.summary import count

    make = {'train': _training, 'infer': _inference}[mode]
    # Two steps to compile and warm up, then wait for the device after each step.
    network = _network(model, dtype, size, num_classes)
    step = make(network, model, size, channels, batch)
    first, _ = _timed(step), _timed(step)
    seconds: list[float] = []
    while len(seconds) < _STEPS or sum(seconds) < _SECONDS:
        seconds.append(_timed(step))
    # FLOPs are counted from the shapes of the layers, independently of the kernels that run.
    macs = count(model, _network(model, 'float32', size, num_classes), (size, size, channels)).macs
    # The parent process reads this JSON from stdout.
    kind = jax.devices()[0].device_kind
    return json.dumps(
        {
            'rate': batch / statistics.median(seconds),
            'first': first,
            'device': kind,
            'peak': next((peak for name, peak in PEAKS.items() if name in kind), None),
            'flops_per_image': macs * (6 if mode == 'train' else 2),
        }
    )


def _timed(step: Callable[[], Any]) -> float:
    """Returns the seconds of a step, until its results are on the device."""
    import jax

    began = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - began


def classes(size: int) -> int:
    """Returns the number of classes for an image size: 1,000 (ImageNet), or 10 if it is small."""
    return 1000 if size > 32 else 10


def _network(model: str, dtype: str, size: int, num_classes: int | None) -> Any:
    from vision.models import create_model

    arguments = {'padding': 2} if model == 'lenet5' and size == 28 else {}
    return create_model(model, num_classes=num_classes or classes(size), dtype=dtype, **arguments)


def _training(network: Any, model: str, size: int, channels: int, batch: int) -> Callable[[], Any]:
    """Returns a function that takes one training step, with the batch already on the device."""
    import numpy as np

    from benchmarks.loop import plain_recipe, synthetic_config
    from vision.core import mesh as mesh_lib
    from vision.training.step import init_state, make_train_step

    mesh = mesh_lib.make_mesh()
    recipe = plain_recipe(synthetic_config(model, size, batch), network)
    state = init_state(recipe, (size, size, channels), mesh)
    train_step = make_train_step(recipe, mesh)
    # One random batch, as the loader would put it on the device.
    rng = np.random.default_rng(0)
    batches = {
        'image': rng.integers(0, 256, (batch, size, size, channels), np.uint8),
        'label': rng.integers(0, network.num_classes, batch, np.int32),
        'id': np.arange(batch, dtype=np.int32),
        'mask': np.ones(batch, np.float32),
    }
    examples = mesh_lib.put_batch(batches, mesh)

    def step() -> Any:
        nonlocal state
        state, metrics = train_step(state, examples)
        return metrics

    return step


def _inference(network: Any, model: str, size: int, channels: int, batch: int) -> Callable[[], Any]:
    """Returns a function that computes the probabilities of a batch that is on the device.

    BatchNorm is folded into the convolutions, as in prediction.
    """
    import jax
    import jax.numpy as jnp

    from vision.models.base import init_variables, run_once
    from vision.models.weights.fold import fold_batch_norm

    # The same folding as in `Classifier`.
    shape = (size, size, channels)
    variables = run_once(lambda: init_variables(network, shape, jax.random.key(0)))
    folded, variables = fold_batch_norm(network, variables, shape)
    images = jax.random.normal(jax.random.key(1), (batch, *shape))

    @jax.jit
    def probabilities(variables: Any, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(folded.apply(variables, images, train=False)[0].astype(jnp.float32))

    return lambda: probabilities(variables, images)
