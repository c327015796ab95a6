"""Mutated images, and a program that classifies them under a memory limit.

    python -m tests.prediction.fuzz FOLDER COUNT

writes the images to the folder and prints JSON: how many were answered and refused, the time and
the memory.
"""

import io
import json
import re
import resource
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 37, 29
ROOM = 3 << 30  # bytes of address space in addition to those in use after the first image
ABSURD = (0, 1, 2, 12_345, 14_000, 30_000, 65_535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)


def seeds() -> dict[str, bytes]:
    """Returns one picture in every common format and mode: name → file."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x * 6, y * 8, (x * y) % 256], axis=-1).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    grey, deep = rgb.convert('L'), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {'save_all': True, 'append_images': [rgb.rotate(90)]}
    made = {
        'rgb.png': (rgb, {}), 'grey.png': (grey, {}), 'deep.png': (deep, {}),
        'palette.png': (rgb.convert('P'), {}), 'alpha.png': (rgb.convert('RGBA'), {}),
        'baseline.jpg': (rgb, {}), 'progressive.jpg': (rgb, {'progressive': True}),
        'grey.jpg': (grey, {}), 'cmyk.jpg': (rgb.convert('CMYK'), {}), 'turned.jpg': (rgb, {'exif': exif}),
        'still.gif': (rgb, {}), 'moving.gif': (rgb, frames), 'rgb.bmp': (rgb, {}), 'grey.bmp': (grey, {}),
        'lossy.webp': (rgb, {}), 'lossless.webp': (rgb, {'lossless': True}), 'moving.webp': (rgb, frames),
        'raw.tif': (rgb, {}), 'lzw.tif': (rgb, {'compression': 'tiff_lzw'}),
        'deflate.tif': (rgb, {'compression': 'tiff_adobe_deflate'}), 'jpeg.tif': (rgb, {'compression': 'jpeg'}),
    }  # fmt: skip
    files = {}
    for name, (image, options) in made.items():
        buffer = io.BytesIO()
        kind = {'jpg': 'JPEG', 'tif': 'TIFF'}.get(name.split('.')[1], name.split('.')[1].upper())
        image.save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


def mutate(rng: np.random.Generator, files: list[bytes]) -> bytes:
    """Damages one of the files in one or two ways."""
    data = files[rng.integers(len(files))]
    for _ in range(rng.integers(1, 3)):
        data = WAYS[rng.integers(len(WAYS))](rng, data, files)
    return data


def _truncate(rng, data, files):
    return data[: rng.integers(len(data) + 1)]


def _flip(rng, data, files):
    changed = bytearray(data)
    for place in rng.integers(len(data) or 1, size=rng.integers(1, 33)):
        if changed:
            changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def _flip_header(rng, data, files):
    return _flip(rng, data[:64], files) + data[64:]


def _swap_header(rng, data, files):
    other, size = files[rng.integers(len(files))], rng.integers(1, 65)
    return other[:size] + data[size:]


def _splice(rng, data, files):
    other = files[rng.integers(len(files))]
    return data[: rng.integers(len(data) + 1)] + other[rng.integers(len(other)) :]


def _overwrite(rng, data, files):
    start, size = rng.integers(len(data) + 1), rng.integers(1, 64)
    return data[:start] + rng.bytes(size) + data[start + size :]


def _repeat(rng, data, files):
    start, size = rng.integers(len(data) + 1), rng.integers(1, 200)
    return data[: start + size] + data[start:]


def _absurd_size(rng, data, files):
    """Writes absurd numbers in place of the width or height; the checksum of a PNG is corrected."""
    forms = [f for f in ('<I', '>I', '<H', '>H')]
    for side in (WIDTH, HEIGHT, WIDTH - 1, HEIGHT - 1):
        for form in forms:
            if rng.random() < 0.6:
                new = struct.pack(
                    form, ABSURD[rng.integers(len(ABSURD))] & (2 ** (8 * struct.calcsize(form)) - 1)
                )
                old = struct.pack(form, side)
                place = data.find(old, 4, 400)
                if place >= 0:
                    data = data[:place] + new + data[place + len(old) :]
    if data[:8] == b'\x89PNG\r\n\x1a\n' and len(data) > 33:
        data = data[:29] + struct.pack('>I', zlib.crc32(data[12:29])) + data[33:]
    return data


WAYS = (_truncate, _flip, _flip_header, _swap_header, _splice, _overwrite, _repeat, _absurd_size)


def write(folder: Path, count: int, seed: int = 0) -> None:
    """Writes `count` mutated images, the same for the same seed."""
    rng = np.random.default_rng(seed)
    named = seeds()
    files, endings = list(named.values()), sorted({n.split('.')[1] for n in named})
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        ending = endings[rng.integers(len(endings))]  # need not match the content
        (folder / f'{i:05}.{ending}').write_bytes(mutate(rng, files))


def photo_classifier():
    """Returns an untrained network with the usual preprocessing of photos."""
    import jax

    from vision.core import mesh as mesh_lib
    from vision.core.config import default_config
    from vision.evaluation.run import Run
    from vision.models import create_model
    from vision.models.base import init_variables
    from vision.prediction import Classifier
    from vision.task import task_of

    config = default_config()
    config.preprocess.eval = 'decode|resize_small(36)|central_crop(32)'
    # Three blocks are enough: the test is about what comes before the network.
    model = create_model('resnet20', num_classes=10, stage_sizes=(1, 1, 1))
    mesh = mesh_lib.make_mesh()
    variables = jax.jit(lambda: init_variables(model, (32, 32, 3), jax.random.key(0)))()
    return Classifier(
        Run(
            path=Path('fuzz'),
            config=config,
            class_names=tuple('0123456789'),
            image_shape=None,
            input_shape=(32, 32, 3),
            step=0,
            model=model,
            task=task_of(config, '0123456789', 10),
            variables=mesh_lib.put_replicated(variables, mesh),
            mesh=mesh,
        )
    )


def main(folder: str, count: str) -> None:
    """Classifies all images in one call and counts the results."""
    write(Path(folder), int(count))
    classifier = photo_classifier()
    good = Path(folder) / 'good.img'
    good.write_bytes(seeds()['rgb.png'])
    expected = next(classifier.classify_files([good]))['predictions']
    list(classifier.classify_files([good] * 300))  # the batch size of the run below
    limit = virtual_size() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answered, refused, slowest = 0, {}, 0.0
    begin = last = time.perf_counter()
    for prediction in classifier.classify_files([folder, good]):
        slowest, last = max(slowest, time.perf_counter() - last), time.perf_counter()
        if prediction['error'] is None:
            total = sum(p['probability'] for p in prediction['predictions'])
            assert 0 < total <= 1.001, prediction
            answered += 1
        else:
            assert prediction['error'] and not prediction['predictions'], prediction
            reason = re.sub(r'\d+', 'N', prediction['error'])
            refused[reason] = refused.get(reason, 0) + 1
    for mine, theirs in zip(expected, prediction['predictions'], strict=True):
        assert abs(mine['probability'] - theirs['probability']) < 1e-5  # the last one is `good`
    print(json.dumps({
        'images': int(count),
        'answered': answered - 1,
        'refused': sum(refused.values()),
        'seconds': round(time.perf_counter() - begin, 1),
        'slowest_batch': round(slowest, 1),
        'peak_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        'reasons': dict(sorted(refused.items(), key=lambda item: -item[1])),
    }))  # fmt: skip


def virtual_size() -> int:
    """Returns the bytes of address space of this process."""
    return int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()


if __name__ == '__main__':
    main(*sys.argv[1:])
