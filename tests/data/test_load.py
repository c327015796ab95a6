"""`load`: TFDS data sets named by a config, in memory and from files."""

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


def test_all_splits_together_are_refused_where_the_source_has_fixed_splits(mnist_mock):
    for config in (mnist_mock, {'source': 'digits'}):
        with pytest.raises(UserError, match="has no split 'all'; only folders and lists have it"):
            data.load(config, 'all')


@pytest.mark.parametrize('validation', [0.25, '25%', '10', 10])
def test_a_share_of_train_is_held_out_in_every_way_of_writing_it(mnist_mock, validation):
    mnist_mock.validation = validation
    assert data.load(mnist_mock, 'validation').num_examples == 10
    assert data.load(mnist_mock, 'train').num_examples == 30


@pytest.mark.parametrize(('key', 'value'), [('test', '10%'), ('fold', '1/5')])
def test_shares_are_refused_where_the_source_has_splits_of_its_own(key, value):
    with pytest.raises(
        UserError, match=f"data.{key}={value}: the source 'digits' has fixed splits"
    ):
        data.load({'source': 'digits', key: value}, 'train')


class Source(data.Source):
    """A source of one image whose label is NaN; `validation` is an integer."""

    name, class_names, num_examples, encoded, image_shape = 'own', ('a', 'b'), 1, False, (2, 2, 1)

    def __init__(self, split: str, validation: int = 3):
        assert validation == 3

    def read(self, ids):
        """Returns the image and NaN."""
        return np.zeros((len(ids), 2, 2, 1), np.uint8), np.full(len(ids), np.nan)


def test_labels_of_a_users_own_source_that_are_not_finite_are_refused_when_read():
    own = data.load({'source': f'{__name__}:Source', 'validation': None}, 'train')
    with pytest.raises(UserError, match='a label is nan'):
        own.labels  # noqa: B018
