"""All measurements for a GPU in one command: ResNet-50 with MFU, epochs of small models. Needs no TensorFlow."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import throughput
from benchmarks.turns import python

DTYPES = ('bfloat16', 'float32')
_EPOCH = """
from benchmarks.loop import epoch_speed
print(json.dumps(epoch_speed(*sys.argv[1:3], *map(int, sys.argv[3:]))))
"""


def gpu(
    batch_size: int = 256,
    tiny: bool = False,
    peer: Sequence[str] | None = None,
    peer_env: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Measures ResNet-50's training step and inference, and epochs of LeNet-5 and ResNet-20.

    Each in a process of its own, once. The epochs are of MNIST's and CIFAR-10's sizes, synthetic
    images in the device's memory, through the loop that every experiment uses.

    Args:
      batch_size: of ResNet-50; fewer where memory does not suffice.
      tiny: small images, batches and epochs instead, to see on any machine that it runs.
      peer: the command line of one that is measured right after our ResNet-50 (`throughput.peer_command`).
      peer_env: the environment of the peer; this process's if None.

    Returns:
      For each `rate`, images per second, `peer`, the peer's, and their `ratio`; `seconds` an epoch;
      `mfu` (the model's FLOPs over the device's peak in bfloat16, float32's too; None where the peak
      is not known), and the `device`.
    """
    size, batch, divisor = (64, 2, 100) if tiny else (224, batch_size, 1)
    rows = []
    for mode in ('train', 'infer'):
        for dtype in DTYPES:
            measure = partial(throughput.measure_apart, mode, 'resnet50', dtype, size, 3, batch)
            reading = measure()
            shares = {'mfu': throughput.mfu(reading, reading['rate'])}
            if peer:
                shares['peer'] = measure(peer=peer, env=peer_env)['rate']
            rows.append(_row('resnet50', mode, dtype, size, batch, reading, shares))
    for model, pixels, channels, examples in (
        ('lenet5', 28, 1, 60_000 // divisor),
        ('resnet20', 32, 3, 50_000 // divisor),
    ):
        for dtype in DTYPES:
            words = [model, dtype, *map(str, (pixels, channels, 128, examples))]
            reading = throughput.run_process([*python(_EPOCH), *words])
            throughput.show('ours', 'epoch', model, dtype, reading)
            shares = {'seconds': examples / reading['rate']}
            rows.append(_row(model, 'epoch', dtype, pixels, 128, reading, shares))
    return rows


def _row(
    model: str,
    mode: str,
    dtype: str,
    size: int,
    batch: int,
    reading: dict[str, Any],
    shares: dict[str, float | None],
) -> dict[str, Any]:
    peer = shares.get('peer')
    return {
        'model': model,
        'mode': mode,
        'dtype': dtype,
        'pixels': size,
        'batch': batch,
        'rate': reading['rate'],
        'peer': peer,
        'ratio': reading['rate'] / peer if peer else None,
        'seconds': shares.get('seconds'),
        'mfu': shares.get('mfu'),
        'device': reading['device'],
    }
