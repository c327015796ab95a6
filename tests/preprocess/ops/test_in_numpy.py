"""Op strings in NumPy give TensorFlow's bits, and those that cannot run there are known."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tiers import quick
from vision.preprocess import ops as ops_lib
from vision.preprocess.ops import in_numpy
from vision.preprocess.ops.on_host import apply


@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
def test_the_bits_are_tensorflows(method):
    """Shrunk and enlarged images of any shape, grey and in colour, with a crop or without."""
    rng = np.random.default_rng(0)
    for channels in (3, 1) * (2 if quick() else 20):
        height, width, size = (int(n) for n in rng.integers(17, 400, 3))
        image = rng.integers(0, 256, (height, width, channels), np.uint8)
        for text in (
            f'decode|resize_small({size}, {method!r})|central_crop({size * 7 // 8})',
            f'decode|resize({size}, {size // 2 + 3}, {method!r})',
            f'decode|resize_small({size}, {method!r})|resize(32)|central_crop(31, 2)',
        ):
            ops = ops_lib.parse(text)
            expected = apply(ops, tf.constant(image), np.zeros((len(ops), 64)), decoded=True)
            assert in_numpy.supports(ops)
            np.testing.assert_array_equal(in_numpy.apply(ops, image), expected.numpy(), text)
            assert in_numpy.output_size(ops) == tuple(expected.shape[:2])


@pytest.mark.parametrize(
    'ops',
    [
        '', 'decode', 'decode|resize_small(20)', 'decode|resize(8, antialias=False)', 'decode|resize(8)|flip_lr',
        "decode|resize(8, method='area')", 'decode|resize(9)|ten_crop(8)',
    ],
)  # fmt: skip
def test_what_numpy_does_not_do_is_known(ops):
    assert not in_numpy.supports(ops_lib.parse(ops))


def test_an_image_smaller_than_its_crop_is_refused():
    for ops in ('decode|central_crop(9)', 'decode|resize_small(8)|central_crop(9)'):
        with pytest.raises(ValueError, match='smaller than the crop'):
            in_numpy.apply(ops_lib.parse(ops), np.zeros((8, 16, 3), np.uint8))
