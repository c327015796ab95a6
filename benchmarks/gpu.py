"""Benchmark of a GPU in parts of less than four minutes each: large models with MFU, and epochs.

It needs no TensorFlow.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import throughput
from benchmarks.turns import python
from vision.core.errors import unknown

DTYPES = ('bfloat16', 'float32')
CALLS = (100, 1)  # the maximum number of steps in a call of the device, of an epoch
_EPOCH = """
from benchmarks.loop import epoch_speed
print(json.dumps(epoch_speed(*sys.argv[1:3], *map(int, sys.argv[3:]))))
"""
# Layers in their plain forms, instead of BatchNorm in few passes and fused attention.
_PLAIN = {'VISION_FAST': '0'}


def gpu(
    parts: Sequence[str] = (),
    batch_size: int = 256,
    tiny: bool = False,
    peer: Sequence[str] | None = None,
    peer_env: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Measures training and inference of large models, and epochs of LeNet-5 and ResNet-20.

    Each measurement runs once, in its own process. The epochs have the sizes of MNIST and CIFAR-10.
    They run the usual training loop on synthetic images in device memory.

    Args:
      parts: some of `PARTS`; () for all.
      batch_size: the batch size of large models; reduce it if the GPU runs out of memory.
      tiny: use small images, batches and epochs, to check on any machine that the benchmark runs.
      peer: the peer's command line (`throughput.peer_command`), which is measured right after each
        measurement of a large model, but not again for its plain form.
      peer_env: the environment variables of the peer; None for those of this process.

    Returns:
      One row for each measurement: `form` ('plain' for plain forms of the layers, or the number of
      steps in a call), `rate` (images/s of this project) and `peer` (images/s of the peer), their
      `ratio`, `seconds` of an epoch, `mfu` (the model's FLOP/s over the device's bfloat16 peak,
      also in float32; None if the peak is unknown), and `device`.

    Raises:
      UserError: a part is unknown, or a process failed.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown('part of gpu', part, PARTS)
    size, batch, divisor = (64, 2, 100) if tiny else (224, batch_size, 1)
    large = partial(_large, size=size, batch=batch, peer=peer, peer_env=peer_env)
    measures = {'large': large, 'epoch': partial(_epoch, divisor=divisor)}
    rows: list[dict[str, Any]] = []
    for part in parts or PARTS:
        kind, words = PARTS[part]
        for each in words:
            rows += measures[kind](*each)
    return rows


# The parts: how each is measured, and the arguments of its measurements.
PARTS: dict[str, tuple[str, tuple[tuple[Any, ...], ...]]] = {
    'resnet50': (
        'large',
        (('train', 'resnet50', DTYPES[0], ('fast', 'plain')), ('train', 'resnet50', DTYPES[1])),
    ),
    'inference': ('large', tuple(('infer', 'resnet50', dtype) for dtype in DTYPES)),
    'epochs': (
        'epoch',
        tuple(
            (*of, dtype)
            for of in (('lenet5', 28, 1, 60_000), ('resnet20', 32, 3, 50_000))
            for dtype in DTYPES
        ),
    ),
    'attention': (
        'large',
        (
            ('train', 'vit_s16', DTYPES[0], ('fast', 'plain')),
            ('train', 'convnext_tiny', DTYPES[0]),
        ),
    ),
}


def _large(
    mode: throughput.Mode,
    model: str,
    dtype: str,
    forms: Sequence[str] = ('fast',),
    *,
    size: int,
    batch: int,
    peer: Sequence[str] | None,
    peer_env: Mapping[str, str] | None,
) -> list[dict[str, Any]]:
    """Measures a large model in its forms, the first one followed by the peer."""
    rows, measure = [], partial(throughput.measure_apart, mode, model, dtype, size, 3, batch)
    for form in forms:
        plain = form == 'plain'
        reading = measure(env={**os.environ, **_PLAIN} if plain else None)
        shares = {'mfu': throughput.mfu(reading, reading['rate'])}
        if peer and not plain:
            shares['peer'] = measure(peer=peer, env=peer_env)['rate']
        rows.append(_row(model, mode, dtype, size, batch, form, reading, shares))
    return rows


def _epoch(
    model: str, pixels: int, channels: int, examples: int, dtype: str, *, divisor: int
) -> list[dict[str, Any]]:
    """Measures epochs of a small model, with several steps in a call of the device and with one."""
    rows, examples = [], examples // divisor
    for calls in CALLS:
        words = [model, dtype, *map(str, (pixels, channels, 128, examples, calls))]
        reading = throughput.run_process([*python(_EPOCH), *words])
        form = f'{calls} step{"s" * (calls > 1)} a call'
        throughput.show(form, 'epoch', model, dtype, reading)
        shares = {'seconds': examples / reading['rate']}
        rows.append(_row(model, 'epoch', dtype, pixels, 128, form, reading, shares))
    return rows


def _row(
    model: str,
    mode: str,
    dtype: str,
    size: int,
    batch: int,
    form: str,
    reading: dict[str, Any],
    shares: dict[str, float | None],
) -> dict[str, Any]:
    # All rows have the same columns; values that do not apply are None.
    peer = shares.get('peer')
    return {
        'model': model,
        'mode': mode,
        'dtype': dtype,
        'pixels': size,
        'batch': batch,
        'form': form,
        'rate': reading['rate'],
        'peer': peer,
        'ratio': reading['rate'] / peer if peer else None,
        'seconds': shares.get('seconds'),
        'mfu': shares.get('mfu'),
        'device': reading['device'],
    }
