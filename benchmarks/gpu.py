"""Benchmark of a GPU in one command: ResNet-50 with MFU, and epochs of small models.

It needs no TensorFlow.
"""

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

    Each measurement runs once, in its own process. The epochs have the sizes of MNIST and CIFAR-10.
    They run the usual training loop on synthetic images in device memory.

    Args:
      batch_size: the batch size of ResNet-50; reduce it if the GPU runs out of memory.
      tiny: use small images, batches and epochs, to check on any machine that the benchmark runs.
      peer: the peer's command line (`throughput.peer_command`), which is measured right after each
        measurement of our ResNet-50.
      peer_env: the environment variables of the peer; None for those of this process.

    Returns:
      One row for each measurement: `rate` (images/s of this project) and `peer` (images/s of the
      peer), their `ratio`, `seconds` of an epoch, `mfu` (the model's FLOP/s over the device's
      bfloat16 peak, also in float32; None if the peak is unknown), and `device`.
    """
    size, batch, divisor = (64, 2, 100) if tiny else (224, batch_size, 1)
    # ResNet-50, each measurement followed by the peer's.
    rows = []
    for mode in ('train', 'infer'):
        for dtype in DTYPES:
            measure = partial(throughput.measure_apart, mode, 'resnet50', dtype, size, 3, batch)
            reading = measure()
            shares = {'mfu': throughput.mfu(reading, reading['rate'])}
            if peer:
                shares['peer'] = measure(peer=peer, env=peer_env)['rate']
            rows.append(_row('resnet50', mode, dtype, size, batch, reading, shares))
    # Epochs of small models, which show the cost of the loop.
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
    # All rows have the same columns; values that do not apply are None.
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
