"""TFDS: by name under TFDS's own mocks, and a small data set in its format, in several shards."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds_lib
from PIL import Image

from vision.core.errors import UserError
from vision.data import tfds_source
from vision.data.tfds_source import tfds
from vision.preprocess.pipeline import eval_batches, train_batches

COUNT = 53


class TinyPictures(tfds_lib.core.GeneratorBasedBuilder):
    """Pictures whose shade is their number."""

    VERSION = tfds_lib.core.Version('1.0.0')

    def _info(self):
        features = tfds_lib.features.FeaturesDict(
            {
                'image': tfds_lib.features.Image(shape=(None, None, 3), encoding_format='png'),
                'label': tfds_lib.features.ClassLabel(names=['even', 'odd']),
            }
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(), 'test': self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            image = np.full((8 + i % 3, 8, 3), i, np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, 'PNG')
            buffer.seek(0)
            yield i, {'image': buffer, 'label': i % 2}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp('tfds')
    builder = TinyPictures(data_dir=path)
    builder.download_and_prepare(
        download_config=tfds_lib.download.DownloadConfig(num_shards=4, max_shard_size=1 << 20)
    )
    assert builder.info.splits['train'].num_shards == 4
    return str(path)


def open_tiny(data_dir, split='train'):
    return tfds(split, 'tiny_pictures', data_dir)


def shades(batch):
    return batch['image'][batch['mask'] > 0][:, 4, 4, 0].tolist()


def all_shades(batches):
    return [shade for batch in batches for shade in shades(batch)]


OPS = 'decode|central_crop(8)'


def epochs(source, steps, batch_size=10, **kwargs):
    batches = train_batches(source, OPS, batch_size=batch_size, seed=3, **kwargs)
    return [next(batches) for _ in range(steps)]


def test_evaluation_reads_everything_once_and_in_order(data_dir):
    source = open_tiny(data_dir)
    assert source.num_examples == COUNT
    assert source.class_names == ('even', 'odd')
    batches = list(eval_batches(source, OPS, batch_size=10))
    ids = np.concatenate([b['id'] for b in batches])
    np.testing.assert_array_equal(ids, [*range(COUNT), *[-1] * 7])
    assert sorted(all_shades(batches)) == list(range(COUNT))
    labels = np.concatenate([b['label'][b['mask'] > 0] for b in batches])
    np.testing.assert_array_equal(labels, np.array(all_shades(batches)) % 2)


@pytest.mark.parametrize('split', ['train[:60%]', 'train[60%:]', 'train[7:31]', 'train+test[:10]'])
def test_slices_have_ids_of_their_own(data_dir, split):
    source = open_tiny(data_dir, split)
    ids = np.concatenate([b['id'] for b in eval_batches(source, OPS, batch_size=8)])
    np.testing.assert_array_equal(ids[ids >= 0], np.arange(source.num_examples))


def test_slices_are_disjoint_and_cover(data_dir):
    parts = [
        all_shades(eval_batches(open_tiny(data_dir, s), OPS, batch_size=8))
        for s in ('train[:90%]', 'train[90%:]')
    ]
    assert sorted(parts[0] + parts[1]) == list(range(COUNT))


def test_each_epoch_has_every_example_in_a_new_order_without_a_gap(data_dir):
    source = open_tiny(data_dir)
    ids = np.concatenate([b['id'] for b in epochs(source, 16)])[: 3 * COUNT].reshape(3, COUNT)
    for epoch in ids:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(COUNT))
    assert not np.array_equal(ids[0], ids[1]) and not np.array_equal(ids[0], np.arange(COUNT))


def test_runs_have_the_same_bits_and_resuming_too(data_dir, monkeypatch):
    source = open_tiny(data_dir)
    run = epochs(source, 15)
    for start in (2, 11):
        resumed = epochs(source, 15 - start, start_step=start)
        for here, there in zip(run[start:], resumed, strict=True):
            for key in here:
                np.testing.assert_array_equal(here[key], there[key])
    monkeypatch.setattr(tfds_source, '_SEGMENT', 1)  # a data set for each epoch
    for here, there in zip(run, epochs(source, 15), strict=True):
        np.testing.assert_array_equal(here['image'], there['image'])


@pytest.mark.parametrize('hosts', [2, 3])
def test_hosts_parts_are_disjoint_cover_and_are_even(data_dir, hosts):
    source = open_tiny(data_dir)
    parts, counts = [], []
    for host in range(hosts):
        shard = {'process_index': host, 'process_count': hosts}
        batches = list(eval_batches(source, OPS, batch_size=4 * hosts, **shard))
        counts.append(len(batches))
        parts.append(np.concatenate([b['id'][b['mask'] > 0] for b in batches]))
        seen = np.concatenate([b['id'] for b in epochs(source, 9, 4 * hosts, **shard)])
        np.testing.assert_array_equal(np.unique(seen[: len(parts[-1])]), parts[-1])
    assert len(set(counts)) == 1
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(COUNT))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ('name', 'classes', 'ops', 'shape'),
    [
        ('mnist', 10, 'decode(channels=1)', (28, 28, 1)),
        ('fashion_mnist', 10, 'decode(channels=1)', (28, 28, 1)),
        ('cifar10', 10, 'decode', (32, 32, 3)),
        ('cifar100', 100, 'decode', (32, 32, 3)),
        ('imagenet2012', 1000, 'decode|random_resized_crop(64)', (64, 64, 3)),
        ('imagenette', 10, 'decode|random_resized_crop(64)', (64, 64, 3)),
        ('cats_vs_dogs', 2, 'decode|random_resized_crop(64)', (64, 64, 3)),
        ('oxford_flowers102', 102, 'decode|random_resized_crop(64)', (64, 64, 3)),
    ],
)
def test_data_sets_that_researchers_name(name, classes, ops, shape):
    with tfds_lib.testing.mock_data(num_examples=19, policy=tfds_lib.testing.MockPolicy.USE_CODE):
        source = tfds('train', name)
        assert source.num_examples == 19 and len(source.class_names) == classes
        batch = next(train_batches(source, ops, batch_size=19, seed=0))
        assert batch['image'].shape == (19, *shape)
        assert sorted(batch['id']) == list(range(19))
        assert batch['mask'].all() and batch['label'].max() < classes
        arrays = tfds_source.as_arrays(source)
        assert (arrays is None) == (shape == (64, 64, 3))
        if arrays is not None:
            assert arrays.images.shape == (19, *shape)


def test_what_is_not_there_is_said(data_dir):
    with pytest.raises(UserError, match="Did you mean 'mnist'"):
        tfds('train', 'mnistt')
    with pytest.raises(UserError, match=r"no split 'validation'.*Known: test, train"):
        open_tiny(data_dir, 'validation')
    with pytest.raises(UserError, match='no examples'):
        open_tiny(data_dir, 'train[:0]')
