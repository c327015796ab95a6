"""`load`: TFDS data sets through the config, in memory and not."""

import numpy as np
import pytest

from configs import mnist_lenet5
from vision import data
from vision.core.errors import UserError
from vision.data.source import ArraySource, NoSplitError
from vision.data.tfds_source import TFDSSource

tfds = pytest.importorskip('tensorflow_datasets')


@pytest.fixture
def mnist_mock(tmp_path):
    with tfds.testing.mock_data(num_examples=40, policy=tfds.testing.MockPolicy.USE_CODE):
        config = mnist_lenet5.get_config().data
        with config.unlocked():
            config.data_dir = str(tmp_path)
        config.validation = 8
        yield config


def test_mnist_of_tfds_is_held_in_memory_with_a_validation_split(mnist_mock):
    train, validation, test = (data.load(mnist_mock, s) for s in ('train', 'validation', 'test'))
    assert all(isinstance(s, ArraySource) for s in (train, validation, test))
    assert (train.num_examples, validation.num_examples, test.num_examples) == (32, 8, 40)
    assert train.images.shape[1:] == (28, 28, 1) and train.images.dtype == np.uint8
    assert train.class_names == tuple('0123456789')


def test_splits_have_theirs_names_and_slices(mnist_mock):
    mnist_mock.in_memory, mnist_mock.validation = False, 0
    with mnist_mock.unlocked():
        mnist_mock.splits = {'validation': 'train[:10]', 'test': None}
    validation = data.load(mnist_mock, 'validation')
    assert isinstance(validation, TFDSSource) and validation.split == 'train[:10]'
    with pytest.raises(NoSplitError):
        data.load(mnist_mock, 'test')


def test_an_unknown_data_set_is_named(mnist_mock):
    mnist_mock.name = 'mnits'
    with pytest.raises(UserError, match="Did you mean 'mnist'"):
        data.load(mnist_mock, 'train')
