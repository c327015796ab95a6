"""The throughput of training from JPEG files beside that of training on synthetic images."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.input import make_jpegs
from benchmarks.loop import loop_rate, synthetic_config

_TIMED = 40  # steps of a round


def end_to_end(
    model: str = 'resnet18', image_size: int = 224, batch_size: int = 16, rounds: int = 3
) -> dict[str, Any]:
    """Measures the loop on JPEG files and on synthetic images in memory, in turn, in one process.

    Args:
      model: in the registry.
      image_size: pixels.
      batch_size: of the global batch.
      rounds: how often each is measured.

    Returns:
      `files` and `synthetic`, images per second (the medians of the rounds), `ratio`, the median of
      the rounds' ratios, and all readings under 'rounds'. The files are those of
      `benchmarks.input`: 500×375, 60 to 100 KB, decoded, cropped at random and flipped.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_jpegs(Path(folder))
        synthetic = synthetic_config(model, image_size, batch_size)
        synthetic.data.num_classes = 2
        files = synthetic.copy_and_resolve_references()
        files.data.source, files.data.path = 'folder', folder
        files.preprocess.train = f'decode|random_resized_crop({image_size})|flip_lr'
        files.preprocess.eval = f'decode|resize({image_size})'
        readings: dict[str, list[float]] = {'files': [], 'synthetic': []}
        for _ in range(rounds):
            readings['files'].append(loop_rate(files, _TIMED))
            readings['synthetic'].append(loop_rate(synthetic, _TIMED))
    return {
        'model': model,
        'files': statistics.median(readings['files']),
        'synthetic': statistics.median(readings['synthetic']),
        'ratio': statistics.median(f / s for f, s in zip(*readings.values(), strict=True)),
        'rounds': readings,
    }
