"""Thumbnails and original images of any source's examples."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from vision.data.source import ArraySource, FileSource
from vision.preprocess.inputs import examples
from vision.preprocess.pictures import data_uri, thumbnail


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1])))


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_thumbnails_of_any_channels(channels):
    large = np.zeros((200, 100, channels), np.uint8)
    assert data_uri(large, 112).startswith('data:image/jpeg;base64,')
    assert opened(data_uri(large, 112)).size == (56, 112)
    tiny = np.random.default_rng(0).integers(0, 256, (9, 7, channels), np.uint8)
    assert data_uri(tiny).startswith('data:image/png;base64,')
    shown = np.asarray(opened(data_uri(tiny)))
    np.testing.assert_array_equal(shown[..., 0], tiny[..., 0])


def test_a_strip_keeps_a_pixel():
    assert thumbnail(np.zeros((1, 3000, 3), np.uint8)).size == (160, 1)


def test_examples_of_files_and_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), np.uint8)
    paths = tuple(str(tmp_path / f'{i}.png') for i in range(4))
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    (tmp_path / '1.png').write_bytes(b'junk')
    labels = np.zeros(4, np.int32)
    found = dict(examples(FileSource('x', ('a',), paths, labels), [2, 1, 3, 4, -1]))
    assert set(found) == {2}  # 1 is damaged, 3 is missing, and 4 does not exist
    np.testing.assert_array_equal(found[2], images[2])
    found = dict(examples(ArraySource('x', ('a',), images, labels[:3]), [0, 3]))
    assert set(found) == {0}
    np.testing.assert_array_equal(found[0], images[0])
