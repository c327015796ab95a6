"""Search for unreadable files before a run starts, in bounded time."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from tests.preprocess.conftest import encode
from vision.core.errors import UserError
from vision.data.source import FileSource
from vision.preprocess.decode import read
from vision.preprocess.unreadable import find_unreadable, look_before_training, why_unreadable

KINDS = (
    'JPEG',
    'PNG',
    'GIF',
    'WEBP',
    'BMP',
    'TIFF',
    'PPM',
    'TGA',
    'AVIF',
    'PCX',
    'ICO',
    'JPEG2000',
    'QOI',
)
SMALL = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def source(paths, name='photos:train'):
    return FileSource(name, ('a',), tuple(map(str, paths)), np.zeros(len(paths), np.int32))


@pytest.mark.parametrize('kind', KINDS)
def test_sound_images_of_every_kind_pass(tmp_path, kind):
    (tmp_path / 'x').write_bytes(encode(SMALL, kind))
    assert why_unreadable(str(tmp_path / 'x')) is None
    (tmp_path / 'y').write_bytes(encode(SMALL, kind) + b'more')
    assert why_unreadable(str(tmp_path / 'y')) is None


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'WEBP', 'BMP'])
@pytest.mark.parametrize('part', [0.3, 0.99])
def test_what_is_cut_off_is_found(tmp_path, kind, part):
    data = encode(SMALL, kind)
    (tmp_path / 'x').write_bytes(data[: int(len(data) * part)])
    try:
        read(data[: int(len(data) * part)])
    except Exception as e:
        assert why_unreadable(str(tmp_path / 'x')) == str(e)
    else:
        assert why_unreadable(str(tmp_path / 'x')) is None


def test_every_reason_is_told(tmp_path):
    made = {'empty.jpg': b'', 'page.jpg': b'<html>not found</html>', 'noise.png': bytes(range(255))}
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    # A folder, a pipe, a broken link, a sound image and a missing file.
    (tmp_path / 'folder.jpg').mkdir()
    os.mkfifo(tmp_path / 'pipe.jpg')
    os.symlink(tmp_path / 'gone', tmp_path / 'link.jpg')
    (tmp_path / 'fine.jpg').write_bytes(encode(SMALL))
    paths = [*tmp_path.iterdir(), tmp_path / 'missing.jpg']
    found = find_unreadable(source(paths))
    assert found.looked == 8
    assert {os.path.basename(path): why for path, why in found.corrupt.items()} == {
        'empty.jpg': 'empty file',
        'page.jpg': 'not an image',
        'noise.png': 'not an image',
        'folder.jpg': 'is a folder',
        'pipe.jpg': 'is not a regular file',
        'link.jpg': 'no such file',
        'missing.jpg': 'no such file',
    }


def test_the_time_is_bounded(tmp_path):
    (tmp_path / 'x.tga').write_bytes(encode(SMALL, 'TGA'))
    begin = time.monotonic()
    found = find_unreadable(source([tmp_path / 'x.tga'] * 200_000), seconds=0.3)
    assert time.monotonic() - begin < 1.5 and 0 < found.looked < 200_000


def test_they_are_told_before_training_and_too_many_of_train_refused(tmp_path, caplog):
    Image.fromarray(SMALL).save(tmp_path / 'fine.png')
    (tmp_path / 'broken.png').write_bytes(b'')
    fine = source([tmp_path / 'fine.png'] * 3)
    broken = source([tmp_path / 'fine.png', tmp_path / 'broken.png'], 'photos:test')
    look_before_training(fine, fine, broken, 0.01)
    assert f'photos:test: 1 images cannot be read: {tmp_path}/broken.png: empty file' in caplog.text
    look_before_training(broken, None, None, 0.5)
    for splits in ((broken, None, None), (fine, broken, None)):
        with pytest.raises(UserError, match=r'broken.png: empty file.*raise data.max_corrupt'):
            look_before_training(*splits, 0.01)
