import gzip
import os
import shutil
import struct

import numpy as np
import pytest
from ml_collections import ConfigDict

from vision import data
from vision.core.errors import UserError
from vision.data import array_files, arrays
from vision.data.source import NoSplitError

pytestmark = pytest.mark.smoke

SPLITS = ('train', 'validation', 'test')


def write_idx(path, array):
    header = struct.pack(f'>I{array.ndim}I', 0x0800 | array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def idx_folder(tmp_path):
    """A small data set in the format of MNIST."""
    rng = np.random.default_rng(0)
    for prefix, n in (('train', 60), ('t10k', 20)):
        images = rng.integers(0, 256, (n, 5, 4), dtype=np.uint8)
        write_idx(tmp_path / f'{prefix}-images-idx3-ubyte', images)
        write_idx(tmp_path / f'{prefix}-labels-idx1-ubyte', np.arange(n, dtype=np.uint8) % 4)
    return tmp_path


def test_digits_are_all_there_once_and_stratified():
    from sklearn.datasets import load_digits

    splits = [arrays.digits(s) for s in SPLITS]
    assert [s.num_examples for s in splits] == [1077, 360, 360]
    ours = np.concatenate([s.images for s in splits]).reshape(1797, 64)
    theirs = np.round(load_digits().data * (255 / 16)).astype(np.uint8)
    np.testing.assert_array_equal(
        ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], err_msg='an image lost or doubled'
    )
    for split in splits:
        counts = np.bincount(split.labels, minlength=10)
        assert np.ptp(counts) <= 0.06 * split.num_examples / 10 + 2


def test_idx_files_plain_and_gzipped_and_with_a_dot(idx_folder, tmp_path):
    plain = array_files.idx('test', str(idx_folder))
    other = tmp_path / 'other'
    other.mkdir()
    for file in idx_folder.glob('*ubyte'):
        with gzip.open(other / (file.name.replace('-idx', '.idx') + '.gz'), 'wb') as out:
            out.write(file.read_bytes())
    again = array_files.idx('test', str(other))
    np.testing.assert_array_equal(plain.images, again.images)
    assert plain.images.shape == (20, 5, 4, 1)
    assert plain.class_names == ('0', '1', '2', '3')
    np.testing.assert_array_equal(plain.labels, np.arange(20) % 4)


def test_idx_validation_comes_out_of_train(idx_folder):
    train, validation = (array_files.idx(s, str(idx_folder), validation=12) for s in SPLITS[:2])
    assert (train.num_examples, validation.num_examples) == (48, 12)
    whole = array_files.idx('train', str(idx_folder))
    rows = np.concatenate([train.images, validation.images]).reshape(60, -1)
    expected = whole.images.reshape(60, -1)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    with pytest.raises(NoSplitError):
        array_files.idx('validation', str(idx_folder))


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage_magic(path):
    path.write_bytes(b'\x89PNG' + path.read_bytes()[4:])


def damage_header(path):
    path.write_bytes(path.read_bytes()[:6])


def damage_gzip(path):
    data = gzip.compress(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])


def damage_inside_gzip(path):
    data = bytearray(gzip.compress(path.read_bytes()))
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def damage_empty(path):
    path.write_bytes(b'')


def damage_remove(path):
    path.unlink()


def damage_swap(path):
    shutil.copy(path.parent / 't10k-images-idx3-ubyte', path)


@pytest.mark.parametrize(
    'damage',
    [
        damage_truncate, damage_magic, damage_header, damage_gzip, damage_inside_gzip,
        damage_empty, damage_remove, damage_swap,
    ],
)  # fmt: skip
def test_a_damaged_idx_file_is_named(idx_folder, damage):
    path = idx_folder / 'train-images-idx3-ubyte'
    damage(path)
    with pytest.raises(UserError, match='train-images-idx3-ubyte'):
        array_files.idx('train', str(idx_folder))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        array_files.idx('train', str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match=r'data\.path'):
        array_files.idx('train', None)


@pytest.mark.parametrize('form', ['x_{}/y_{}', '{}_images/{}_labels'])
def test_npz_in_both_ways_of_naming(tmp_path, form):
    rng = np.random.default_rng(0)
    wanted = {}
    for split, n in (('train', 30), ('test', 10)):
        images, labels = (name.format(split) for name in form.split('/'))
        wanted[images] = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
        wanted[labels] = np.arange(n)[:, None] % 3
    np.savez(tmp_path / 'a.npz', **wanted)
    train = array_files.npz('train', str(tmp_path / 'a.npz'))
    validation = array_files.npz('validation', str(tmp_path / 'a.npz'), validation=6)
    test = array_files.npz('test', str(tmp_path / 'a.npz'))
    assert (train.num_examples, validation.num_examples, test.num_examples) == (30, 6, 10)
    assert train.images.shape == (30, 6, 6, 3)


@pytest.mark.parametrize(
    'contents',
    [
        {'x_train': np.zeros((3, 4, 4), np.float32), 'y_train': np.zeros(3, int)},
        {'x_train': np.zeros((3, 4, 4), np.uint8), 'y_train': np.zeros(4, int)},
        {'x_train': np.zeros((3, 4, 4), np.uint8), 'y_train': np.zeros(3)},
        {'x_train': np.zeros((0, 4, 4), np.uint8), 'y_train': np.zeros(0, int)},
        {'x_train': np.zeros((3, 4, 4), np.uint8), 'y_train': np.array([0, -1, 2])},
        {'images': np.zeros((3, 4, 4), np.uint8)},
        {'x_train': np.zeros((3, 4, 4), np.uint8), 'y_train': np.array(['a', 'b', 'c'])},
        {'x_train': np.zeros((3, 4, 4), np.uint8), 'y_train': np.array(['a', 1, None], object)},
        {'x_train': np.zeros((3, 4, 4), np.uint8), 'y_train': np.array(3)},
        {'x_train': np.uint8(3), 'y_train': np.array(3)},
        {'x_train': np.zeros((3, 0, 4), np.uint8), 'y_train': np.zeros(3, int)},
        {'x_train': np.zeros((3, 4, 4), np.uint8), 'y_train': np.zeros((3, 3), int)},
        {'x_train': np.zeros((3, 4, 4, 1, 1), np.uint8), 'y_train': np.zeros(3, int)},
    ],
)
def test_npz_with_other_contents_is_refused(tmp_path, contents):
    np.savez(tmp_path / 'a.npz', **contents)
    with pytest.raises(UserError, match=r'a\.npz'):
        array_files.npz('train', str(tmp_path / 'a.npz'))


def test_an_absurd_label_is_refused_before_memory_is_spent(tmp_path):
    arrays_ = {'x_train': np.zeros((3, 4, 4), np.uint8), 'y_train': np.array([0, 1, 1 << 40])}
    np.savez(tmp_path / 'a.npz', **arrays_)
    with pytest.raises(UserError, match='a label is 1099511627776'):
        array_files.npz('train', str(tmp_path / 'a.npz'))


def test_a_damaged_npz_is_named(tmp_path):
    path = tmp_path / 'a.npz'
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez_compressed(path, x_train=images, y_train=np.arange(30) % 3)
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        for damaged in (whole[:place], whole[:place] + b'\xff\x00\x37' + whole[place + 3 :]):
            path.write_bytes(damaged)
            try:
                np.testing.assert_array_equal(
                    array_files.npz('train', str(path)).images[..., 0], images
                )
            except UserError as e:
                assert 'a.npz' in str(e)
    np.save(tmp_path / 'b.npz', images)
    os.replace(tmp_path / 'b.npz.npy', tmp_path / 'b.npz')
    with pytest.raises(UserError, match=r'b\.npz is not a readable \.npz'):
        array_files.npz('train', str(tmp_path / 'b.npz'))


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / 'a.npz').write_text('hello')
    with pytest.raises(UserError, match=r'a\.npz'):
        array_files.npz('train', str(tmp_path / 'a.npz'))


def test_synthetic_labels_can_be_read_off_the_pixels_and_splits_differ():
    train, test = (arrays.synthetic(s, 200, 10, 32, 3) for s in ('train', 'test'))
    assert train.images.shape == (200, 32, 32, 3)
    side, cell = 4, 8
    blocks = train.images[..., 0].reshape(200, side, cell, side, cell).mean((2, 4)).reshape(200, -1)
    np.testing.assert_array_equal(blocks.argmax(1), train.labels)
    assert set(train.labels) == set(range(10))
    assert not (train.images == test.images).all()


def test_mnist_as_published(mnist):
    train, validation, test = (array_files.idx(s, mnist, validation=5000) for s in SPLITS)
    assert (train.num_examples, validation.num_examples, test.num_examples) == (55000, 5000, 10000)
    assert np.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert np.bincount(train.labels).sum() + np.bincount(validation.labels).sum() == 60000
    assert test.images.shape[1:] == (28, 28, 1)


def test_fashion_mnist_is_read_from_gzip(fashion_mnist):
    test = array_files.idx('test', fashion_mnist)
    assert np.bincount(test.labels).tolist() == [1000] * 10


def test_load_names_the_nearest_source_split_and_key():
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        data.load(ConfigDict({'source': 'digit'}), 'train')
    with pytest.raises(UserError, match="Did you mean 'validation'"):
        data.load(ConfigDict({'source': 'digits'}), 'validaton')
    with pytest.raises(UserError, match="Did you mean 'path'"):
        data.load(ConfigDict({'source': 'idx', 'pth': 'x'}), 'train')


def test_an_npz_with_several_labels_an_image(tmp_path):
    labels = (np.arange(30)[:, None] % np.array([2, 3, 5]) == 0).astype(np.float32)
    np.savez(tmp_path / 'a.npz', x_train=np.zeros((30, 4, 4), np.uint8), y_train=labels)
    source = array_files.npz('train', str(tmp_path / 'a.npz'), validation=10)
    held = array_files.npz('validation', str(tmp_path / 'a.npz'), validation=10)
    assert source.multi_label and source.class_names == ('0', '1', '2')
    assert (source.num_examples, held.num_examples) == (20, 10)
    np.testing.assert_array_equal(source.labels.sum(0) + held.labels.sum(0), labels.sum(0))
    with pytest.raises(UserError, match=r'labels \[30, 3\] do not match the 2 classes'):
        array_files.npz('train', str(tmp_path / 'a.npz'), class_names=('a', 'b'))


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('what', ['images', 'labels', 'every label'])
def test_values_that_are_not_finite_are_named_when_read(tmp_path, value, what):
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int64)
    if what == 'images':
        images = images.astype(np.float32)
        images[2, 1] = value
    else:
        labels = np.eye(4) if what == 'every label' else labels.astype(np.float64)
        labels[2] = value
    np.savez(tmp_path / 'a.npz', x_train=images, y_train=labels)
    told = (
        f'of the {what.split()[-1].rstrip("s")}s are not finite; the first is {value} in example 2'
    )
    with pytest.raises(UserError, match=told):
        array_files.npz('train', str(tmp_path / 'a.npz'))
