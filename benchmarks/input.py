"""Throughput of training input from JPEG files, in turn with torchvision.

JPEGs of 500×375 pixels and 60 to 100 KB are decoded, cropped at random to 224 pixels and flipped,
into uint8 batches of 100.
"""

import functools
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import in_turn, medians, run_process
from vision.core import startup
from vision.core.errors import UserError
from vision.data.source import FileSource

OPS = 'decode|random_resized_crop(224)|flip_lr'
_BATCH = 100
_FILES = 400
_WARM_UP = 4  # batches before the timing
_TIMED = 30  # batches that are timed

# This program runs in the peer's Python, which has none of this project's packages.
_PEER = """
import sys, time, torch, torchvision
from torchvision import transforms as T
folder, workers, batch, warm_up, timed = sys.argv[1], *map(int, sys.argv[2:])
transform = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.PILToTensor()])
images = torchvision.datasets.ImageFolder(folder, transform)
repeats = -(-batch * (warm_up + timed + 2 * workers) // len(images))
images = torch.utils.data.ConcatDataset([images] * repeats)
batches = iter(torch.utils.data.DataLoader(images, batch, shuffle=True, num_workers=workers))
for _ in range(warm_up):
    next(batches)
begin = time.perf_counter()
for _ in range(timed):
    next(batches)
print(batch * timed / (time.perf_counter() - begin))
"""


def input_speed(peer: str | None, peer_python: str | None, rounds: int) -> dict[str, Any]:
    """Measures the input pipeline.

    Args:
      peer: 'torchvision' or None.
      peer_python: the Python in which torchvision is installed.
      rounds: the number of measurements of each candidate, in turn.

    Returns:
      `ours`, `simplejpeg` and `peer`: images/s, medians over the rounds, or None. `ratio`: `ours`
      over `peer`. `rounds`: all readings. simplejpeg, measured if it is installed, shows the speed
      of libjpeg-turbo alone: it decodes whole images at the smallest scale with at least 224 pixels
      on each side, with the fast DCT, on one thread per core.

    Raises:
      UserError: the peer is unknown, or fails.
    """
    if peer not in (None, 'torchvision'):
        raise UserError(f'--peer={peer}: the only peer is torchvision')
    # Measure this project, the decoder alone and the peer on the same files, in turn.
    with tempfile.TemporaryDirectory() as folder:
        source = make_jpegs(Path(folder))
        cores = len(os.sched_getaffinity(0))
        candidates: dict[str, Callable[[], float]] = {'ours': lambda: _ours(source)}
        if _has_simplejpeg():
            candidates['simplejpeg'] = lambda: _simplejpeg(source, cores)
        if peer:
            candidates['peer'] = lambda: _peer(folder, peer_python or 'python', cores)
        readings = in_turn(candidates, rounds)
    rates = medians(readings)
    result: dict[str, Any] = {k: rates.get(k) for k in ('ours', 'simplejpeg', 'peer')}
    result['ratio'] = rates['ours'] / rates['peer'] if peer else None
    return {**result, 'cores': cores, 'rounds': readings}


def make_jpegs(folder: Path, count: int = _FILES) -> FileSource:
    """Makes JPEGs (500×375 pixels, 60 to 100 KB) from scikit-learn's photos, in two classes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        # A random crop with some noise, so that the file has the size of a real photograph.
        photo = photos[i % len(photos)]
        side = rng.integers(300, 420)
        y, x = (rng.integers(limit) for limit in (427 - side, 640 - side * 4 // 3))
        crop = Image.fromarray(photo[y : y + side, x : x + side * 4 // 3])
        image = np.asarray(crop.resize((500, 375), Image.Resampling.BICUBIC), float)
        grainy = image + rng.normal(0, 6, (375, 500, 1))
        path = folder / f'class{i % 2}' / f'{i:04}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8))))
        paths.append(str(path))
    labels = np.arange(count, dtype=np.int32) % 2
    return FileSource('benchmark', ('class0', 'class1'), tuple(paths), labels)


def _encode(image: Any) -> bytes:
    """Returns a JPEG of the highest quality that gives less than 95 KB."""
    # Lower the quality until the file is small enough.
    for quality in range(95, 30, -3):
        buffer = io.BytesIO()
        image.save(buffer, 'JPEG', quality=quality)
        if buffer.tell() < 95_000:
            break
    return buffer.getvalue()


def _ours(source: FileSource) -> float:
    from vision.preprocess.pipeline import train_batches

    return _rate(train_batches(source, OPS, batch_size=_BATCH, seed=0))


def _rate(batches: Iterator[Any]) -> float:
    """Returns the images/s of an iterator over batches, after a warm-up."""
    for _ in range(_WARM_UP):
        next(batches)
    begin = time.perf_counter()
    for _ in range(_TIMED):
        next(batches)
    return _BATCH * _TIMED / (time.perf_counter() - begin)


def _has_simplejpeg() -> bool:
    import importlib.util

    return importlib.util.find_spec('simplejpeg') is not None


def _simplejpeg(source: FileSource, threads: int) -> float:
    """Returns the images/s of decoding alone."""
    import concurrent.futures

    import simplejpeg

    decode = functools.partial(
        simplejpeg.decode_jpeg, fastdct=True, fastupsample=True, min_height=224, min_width=224
    )
    # Decoding releases the GIL, so threads use all cores.
    data = [Path(path).read_bytes() for path in source.paths] * 4
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        decoded = sum(pool.map(lambda d: len(decode(d)) > 0, data))
        return decoded / (time.perf_counter() - begin)


def _peer(folder: str, python: str, workers: int) -> float:
    arguments = [folder, *map(str, (workers, _BATCH, _WARM_UP, _TIMED))]
    return run_process([python, '-c', _PEER, *arguments], startup.shipped_environment())
