"""Fixtures: a photograph, encoded images, and a function that applies ops to one image."""

import functools
import io
import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np
import pytest
from PIL import Image

from vision.data.source import FileSource
from vision.preprocess import ops as ops_lib
from vision.preprocess.ops import PER_OP
from vision.preprocess.ops.on_host import apply, draw


@pytest.fixture(scope='session')
def photo(photos):
    return photos[-1]


def encode(image, kind='JPEG', **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


@pytest.fixture(scope='session', name='encode')
def _encode():
    return encode


@functools.cache
def compiled(text, shape):
    import tensorflow as tf

    ops = ops_lib.parse(text)
    kind = tf.TensorSpec(shape, tf.uint8 if shape else tf.string)
    draws = tf.TensorSpec([len(ops), PER_OP], tf.float64)
    run = tf.function(lambda x, d: apply(ops, x, d), [kind, draws], autograph=False)
    return run, len(ops)


@pytest.fixture(scope='session')
def run_op():
    """Applies an op string to one image (pixels or bytes), as example `id` of an epoch."""

    def run(text, image, id=0, epoch=0, seed=0):
        shape = () if isinstance(image, bytes) else image.shape
        function, num_ops = compiled(text, shape)
        draws = draw(seed, np.array([epoch]), np.array([id]), num_ops)[0]
        return function(image, draws).numpy()

    return run


@pytest.fixture(scope='session')
def jpegs(tmp_path_factory, photos):
    """Sixty JPEGs cut from the photographs, 160×120, in two classes."""
    root = tmp_path_factory.mktemp('jpegs')
    rng = np.random.default_rng(0)
    paths, labels = [], []
    for i in range(60):
        photo = photos[i % len(photos)]
        y, x = rng.integers(photo.shape[0] - 120), rng.integers(photo.shape[1] - 160)
        path = root / f'{i:03}.jpg'
        path.write_bytes(encode(photo[y : y + 120, x : x + 160], quality=90))
        paths.append(str(path))
        labels.append(i % 2)
    return FileSource('jpegs', ('even', 'odd'), tuple(paths), np.array(labels, np.int32))
