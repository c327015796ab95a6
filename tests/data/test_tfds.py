"""TFDS sources, with TFDS's mock data and with a small data set in several shards."""

import io
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds_lib
from ml_collections import ConfigDict
from PIL import Image

from configs import tfds_resnet
from tests import tiers
from vision import data
from vision.core.errors import UserError
from vision.data import tfds_source
from vision.data.order import batch_ids
from vision.data.tfds_source import RecordSource, tfds
from vision.preprocess import inputs
from vision.preprocess.pipeline import eval_batches, train_batches

COUNT = 53


class TinyPictures(tfds_lib.core.GeneratorBasedBuilder):
    """Images whose grey value is their number."""

    VERSION = tfds_lib.core.Version('1.0.0')
    SHAPE = (None, None, 3)

    def _info(self):
        features = tfds_lib.features.FeaturesDict(
            {
                'image': tfds_lib.features.Image(shape=self.SHAPE, encoding_format='png'),
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


def test_runs_have_the_same_bits_and_resuming_too(data_dir):
    source = open_tiny(data_dir)
    run = epochs(source, 15)
    for start in (11,) if tiers.quick() else (2, 11):
        resumed = epochs(source, 15 - start, start_step=start)
        for here, there in zip(run[start:], resumed, strict=True):
            for key in here:
                np.testing.assert_array_equal(here[key], there[key])


@pytest.mark.parametrize('host', tiers.split([None, 0, 1], [None]))
def test_with_repeats_each_example_of_an_epoch_comes_so_often(data_dir, host):
    ops = OPS + '|random_erasing(1)'
    shard = {} if host is None else {'process_index': host, 'process_count': 2}
    size = {None: COUNT, 0: 27, 1: 26}[host]  # size of this host's part of the split
    settings = {'batch_size': 12, 'seed': 3, 'repeats': 3, **shard}
    batches = train_batches(open_tiny(data_dir), ops, **settings)
    run = [next(batches) for _ in range(12)]
    ids, images = (np.concatenate([b[k] for b in run]) for k in ('id', 'image'))
    local = len(run[0]['id'])
    for batch in run[: size // local]:  # the views lie apart, with different pixels
        assert len(set(batch['id'][: local // 3])) == local // 3
        assert len(np.unique(batch['id'])) == local // 3
    # Each example of the epoch occurs three times, with different pixels.
    counts = np.unique(ids[: size // local * local], return_counts=True)[1]
    assert (counts == 3).all()
    assert len({image.tobytes() for image in images}) == len(images)
    # A resumed run continues with the same batches.
    resumed = train_batches(open_tiny(data_dir), ops, start_step=7, **settings)
    for here, there in zip(run[7:], resumed, strict=False):
        for key in here:
            np.testing.assert_array_equal(here[key], there[key])


@pytest.mark.parametrize('hosts', tiers.split([2, 3], [2]))
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
        pytest.param(
            'fashion_mnist', 10, 'decode(channels=1)', (28, 28, 1), marks=pytest.mark.slow
        ),
        ('cifar10', 10, 'decode', (32, 32, 3)),
        pytest.param('cifar100', 100, 'decode', (32, 32, 3), marks=pytest.mark.slow),
        ('imagenet2012', 1000, 'decode|random_resized_crop(64)', (64, 64, 3)),
        pytest.param(
            'imagenette', 10, 'decode|random_resized_crop(64)', (64, 64, 3), marks=pytest.mark.slow
        ),
        pytest.param(
            'cats_vs_dogs', 2, 'decode|random_resized_crop(64)', (64, 64, 3), marks=pytest.mark.slow
        ),
        pytest.param(
            'oxford_flowers102',
            102,
            'decode|random_resized_crop(64)',
            (64, 64, 3),
            marks=pytest.mark.slow,
        ),
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


@pytest.fixture(scope='module')
def indexed_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp('array_record')
    builder = TinyPictures(data_dir=path, file_format='array_record')
    builder.download_and_prepare(
        download_config=tfds_lib.download.DownloadConfig(num_shards=4, max_shard_size=1 << 20)
    )
    assert builder.info.splits['train'].num_shards == 4
    return str(path)


def test_array_record_is_shuffled_in_full_by_the_order_of_the_ids(indexed_dir):
    source = open_tiny(indexed_dir)
    assert isinstance(source, RecordSource) and source.class_names == ('even', 'odd')
    run = epochs(source, 12)
    for step, batch in enumerate(run):
        np.testing.assert_array_equal(batch['id'], batch_ids(3, COUNT, 10, step)[0])
        np.testing.assert_array_equal(batch['label'], np.array(shades(batch)) % 2)
    resumed = epochs(source, 5, start_step=7)
    for hosts in (2,) if tiers.quick() else (2, 5):
        parts = [epochs(source, 12, process_index=h, process_count=hosts) for h in range(hosts)]
        for step, batch in enumerate(run):
            for key in batch:
                together = np.concatenate([part[step][key] for part in parts])
                np.testing.assert_array_equal(together, batch[key])
                if step >= 7:
                    np.testing.assert_array_equal(resumed[step - 7][key], batch[key])


@pytest.mark.parametrize('split', ['train', 'train[:60%]', 'train[7:31]', 'train+test[:10]'])
def test_array_record_is_evaluated_once_and_in_order(indexed_dir, split):
    source = open_tiny(indexed_dir, split)
    batches = list(eval_batches(source, OPS, batch_size=8))
    ids = np.concatenate([b['id'] for b in batches])
    np.testing.assert_array_equal(ids[ids >= 0], np.arange(source.num_examples))
    expected = [source.records[i]['label'] for i in range(source.num_examples)]
    labels = np.concatenate([b['label'][b['mask'] > 0] for b in batches])
    np.testing.assert_array_equal(labels, expected)
    assert len(set(all_shades(batches))) >= min(COUNT, source.num_examples) - 10


class SomeBroken(TinyPictures):
    """The same data set, but every tenth record has no image."""

    def _generate_examples(self):
        for key, example in super()._generate_examples():
            yield key, {**example, 'image': io.BytesIO(b'junk')} if key % 10 == 3 else example


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_records_without_an_image_are_masked_and_counted(tmp_path, file_format):
    SomeBroken(data_dir=tmp_path, file_format=file_format).download_and_prepare()
    source = tfds('train', 'some_broken', str(tmp_path))
    with pytest.raises(UserError, match=r'some_broken:train, example \d+: .*--skip_corrupt'):
        list(eval_batches(source, OPS, batch_size=10))
    batches = eval_batches(source, OPS, batch_size=10, skip_corrupt=True)
    good = all_shades(batches)
    assert sorted(good) == [i for i in range(COUNT) if i % 10 != 3]
    assert len(batches.corrupt) == 5
    with pytest.raises(UserError, match=r'data\.max_corrupt=0\.05'):
        epochs(source, 6, max_corrupt=0.05)
    training = train_batches(source, OPS, batch_size=10, seed=3, max_corrupt=0.2)
    run = [next(training) for _ in range(12)]
    assert len(training.corrupt) == 5
    for batch in run:
        assert len(batch['id']) == 10
        np.testing.assert_array_equal(batch['image'][:, 4, 4, 0] % 2, batch['label'])


@pytest.mark.parametrize(
    ('file_format', 'damage'),
    tiers.split(
        [(f, d) for f in ('tfrecord', 'array_record') for d in ('flipped', 'cut', 'gone')],
        [('tfrecord', 'flipped'), ('tfrecord', 'cut'), ('array_record', 'gone')],
    ),
)
def test_damaged_files_are_said_and_never_pass_for_the_end(tmp_path, damage, file_format):
    TinyPictures(data_dir=tmp_path, file_format=file_format).download_and_prepare(
        download_config=tfds_lib.download.DownloadConfig(num_shards=4, max_shard_size=1 << 20)
    )
    (shard,) = tmp_path.rglob(f'*train.{file_format}-00001*')
    raw = shard.read_bytes()
    flipped = raw[:64] + bytes(b ^ 255 for b in raw[64:600]) + raw[600:]
    shard.write_bytes(flipped if damage == 'flipped' else raw[: len(raw) // 2])
    if damage == 'gone':
        shard.unlink()
    why = 'records cannot be read' if file_format == 'tfrecord' else 'example 1[3-9]: |max_corrupt'
    with pytest.raises(UserError, match=why):
        list(eval_batches(open_tiny(str(tmp_path)), OPS, batch_size=10))
    with pytest.raises(UserError, match=why):
        epochs(open_tiny(str(tmp_path)), 20)


def test_array_record_in_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), dtype=np.uint8)
    records = []
    for i, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0]).save(buffer, 'PNG')
        records.append({'image': buffer.getvalue(), 'label': i})
    source = tfds_source.as_arrays(RecordSource('x', tuple('abcdefg'), records, (28, 28, 1)))
    np.testing.assert_array_equal(source.images, pixels)
    np.testing.assert_array_equal(source.labels, np.arange(7))
    records[3] = {'image': b'junk', 'label': 3}
    with pytest.raises(UserError, match='x: example 3 cannot be read'):
        tfds_source.as_arrays(RecordSource('x', tuple('abcdefg'), records, (28, 28, 1)))


def test_a_split_without_labels_is_refused_where_it_is_read():
    source = RecordSource('x', ('a', 'b'), [{'image': b'', 'label': -1}])
    with pytest.raises(UserError, match='x: the examples have no labels'):
        source.read([0])


@pytest.mark.parametrize(
    'name',
    tiers.split(
        ['cifar10', 'cifar100', 'imagenette', 'cats_vs_dogs', 'oxford_flowers102', 'imagenet2012'],
        ['cifar10', 'imagenet2012'],
    ),
)
def test_the_config_opens_every_split_of_each(name):
    config = tfds_resnet.get_config(name)
    if config.data.get('in_memory'):
        config.data.validation = 5
    with tfds_lib.testing.mock_data(num_examples=20, policy=tfds_lib.testing.MockPolicy.USE_CODE):
        sources = [data.load(config.data, s) for s in ('train', 'validation', 'test')]
        for source in sources:
            assert source.num_examples and source.class_names == sources[0].class_names
            assert inputs.input_shape(source, config.preprocess.eval)[-1] == 3


def test_without_a_connection_it_says_so_in_seconds_and_what_to_do():
    from tensorflow_datasets.core.download import downloader

    class Unreachable:
        data_dir = 'somewhere'

        def download_and_prepare(self):
            with downloader._open_url(
                'http://127.0.0.1:9/mnist.gz'
            ):  # no server listens on this port
                pass

    began = time.monotonic()
    with pytest.raises(
        UserError, match=r'no connection to 127\.0\.0\.1.*data\.source=idx'
    ) as error:
        tfds_source._prepare(Unreachable(), 'mnist')
    assert time.monotonic() - began < 10 and '\n' not in str(error.value)


class Odd__Name(TinyPictures):
    """Has TFDS's separator in its name, images of one size, and a validation split."""

    VERSION = tfds_lib.core.Version('1.0.0')
    SHAPE = (8, 8, 3)
    name = 'odd__name'

    def _generate_examples(self):
        for i in range(COUNT):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(buffer, 'PNG')
            buffer.seek(0)
            yield i, {'image': buffer, 'label': i % 2}


def test_a_split_of_its_own_and_one_that_is_held_out(tmp_path):
    Odd__Name(data_dir=tmp_path).download_and_prepare()
    about = ConfigDict({'source': 'tfds', 'name': 'odd__name', 'data_dir': str(tmp_path)})
    about.splits = {'train': 'train[:40]', 'validation': 'train[40:]'}
    for in_memory in (False, True):
        about.in_memory = in_memory
        sources = [data.load(about, split) for split in ('train', 'validation', 'test')]
        assert [s.num_examples for s in sources] == [40, 13, COUNT]
    assert shades(next(eval_batches(data.load(about, 'test'), 'central_crop(8)', batch_size=COUNT)))
    del about.splits
    about.validation = 10
    assert [data.load(about, s).num_examples for s in ('train', 'validation')] == [43, 10]
    about.in_memory = False
    read = all_shades(eval_batches(data.load(about, 'test'), OPS, batch_size=10))
    assert sorted(read) == list(range(COUNT))
    for split in ('train', 'validation'):
        with pytest.raises(UserError, match='needs data'):
            data.load(about, split)


class SeveralLabels(TinyPictures):
    """The same data set, but the labels of an image are its divisors among 2, 3 and 5."""

    def _info(self):
        names = tfds_lib.features.ClassLabel(names=['two', 'three', 'five'])
        features = tfds_lib.features.FeaturesDict(
            {
                'image': tfds_lib.features.Image(shape=self.SHAPE, encoding_format='png'),
                'labels': tfds_lib.features.Sequence(names),
            }
        )
        return self.dataset_info_from_configs(features=features)

    def _generate_examples(self):
        for key, example in super()._generate_examples():
            labels = [i for i, divisor in enumerate((2, 3, 5)) if key % divisor == 0]
            yield key, {'image': example['image'], 'labels': labels}


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_sequence_of_classes_is_multi_label(tmp_path, file_format):
    SeveralLabels(data_dir=tmp_path, file_format=file_format).download_and_prepare()
    source = tfds('train', 'several_labels', str(tmp_path))
    assert source.multi_label and source.class_names == ('two', 'three', 'five')
    run = [*epochs(source, 6, repeats=2), *eval_batches(source, OPS, batch_size=10)]
    for batch in run:
        real = batch['mask'] > 0
        divides = batch['image'][:, 4, 4, 0][:, None] % np.array([2, 3, 5]) == 0
        np.testing.assert_array_equal(batch['label'], divides * real[:, None])
        assert batch['label'].dtype == np.float32
    assert source.labels.shape == (COUNT, 3) and source.labels.sum() == 27 + 18 + 11
