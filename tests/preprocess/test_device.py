"""Preprocessing on the device: order, augmentation by (seed, epoch, id), normalisation."""

import numpy as np
import pytest

from vision.core.config import default_config
from vision.core.errors import UserError
from vision.core.mesh import make_mesh
from vision.data import arrays
from vision.data.order import batch_ids
from vision.preprocess import device, inputs
from vision.training.setup import loading_of

AUGMENT = 'resize(12)|affine(degrees=10, shift=2)|flip_lr'


@pytest.fixture(scope='module')
def split():
    return device.DeviceSplit(arrays.digits('validation'), AUGMENT, 5, make_mesh())


def batches(split, start, count):
    stream = split.train_batches(50, 5, start)
    return [{k: np.asarray(v) for k, v in next(stream).items()} for _ in range(count)]


def test_a_batch_holds_the_ids_of_the_order_and_their_labels(split):
    labels = arrays.digits('validation').labels
    for step, batch in enumerate(batches(split, 0, 5)):
        ids, _ = batch_ids(5, len(labels), 50, step)
        np.testing.assert_array_equal(batch['id'], ids)
        np.testing.assert_array_equal(batch['label'], labels[ids])
        assert (batch['mask'] == 1).all()
        assert batch['image'].shape == (50, 12, 12, 1)


def test_seeking_gives_the_same_bits(split):
    for a, b in zip(batches(split, 0, 6)[4:], batches(split, 4, 2), strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_augmentation_is_of_the_example_and_the_epoch_and_not_of_its_place(split):
    ids = np.arange(8)
    one = np.asarray(split.batch(ids, np.full(8, 3))['image'])
    turned = np.asarray(split.batch(ids[::-1].copy(), np.full(8, 3))['image'])
    np.testing.assert_array_equal(one, turned[::-1])
    other = np.asarray(split.batch(ids, np.full(8, 4))['image'])
    assert all((a != b).any() for a, b in zip(one, other, strict=True))


def test_repeated_augmentation_shows_views_that_differ(split):
    config = default_config()
    config.preprocess.train, config.seed = AUGMENT, 5
    config.training.batch_size, config.data.repeats = 50, 5
    batch = next(inputs.TrainBatches(split.source, loading_of(config), make_mesh(), 2))
    np.testing.assert_array_equal(batch['id'], batch_ids(5, 360, 50, 2, 5)[0])
    assert len(np.unique(batch['id'])) == 10
    assert len({image.tobytes() for image in np.asarray(batch['image'])}) == 50


def test_evaluation_pads_and_counts_each_once():
    source = arrays.digits('test')
    seen = [
        {k: np.asarray(v) for k, v in b.items()}
        for b in inputs.EvalBatches(source, 'resize(16)', 100, make_mesh())
    ]
    assert [len(b['id']) for b in seen] == [100] * 4
    ids = np.concatenate([b['id'] for b in seen])
    mask = np.concatenate([b['mask'] for b in seen])
    np.testing.assert_array_equal(ids[mask > 0], np.arange(360))
    assert (ids[mask == 0] == -1).all() and (mask == 0).sum() == 40


def test_normalise_is_what_it_says():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(device.normalise(images, mean, std), expected, atol=1e-5)
    with pytest.raises(UserError, match='2 values for 3 channels'):
        device.normalise(images, (0.1, 0.2), std)


def test_input_shape_is_found_without_running_anything():
    assert inputs.input_shape(arrays.digits('test'), 'resize(32)|rgb') == (32, 32, 3)


@pytest.mark.parametrize('ops', ['resize', 'resize(3, 4, 5)', 'rotat(3)'])
def test_bad_ops_are_the_users_mistake(ops):
    config = default_config()
    config.preprocess.train = ops
    with pytest.raises(UserError, match=r'op|method of resize'):
        next(inputs.TrainBatches(arrays.digits('train'), loading_of(config), make_mesh(), 0))


def test_views_of_an_image_are_draws_of_their_own(split):
    config = default_config()
    config.preprocess.train, config.seed = AUGMENT, 5
    config.training.batch_size = 50
    plain = batches(split, 0, 8)  # more than an epoch
    config.data.views = 1
    # One view is the same as no views.
    for got, wanted in zip(
        inputs.TrainBatches(split.source, loading_of(config), make_mesh(), 0), plain
    ):
        np.testing.assert_array_equal(got['image'], wanted['image'])
    config.data.views, config.data.repeats = 3, 2

    def run(start, count):
        stream = inputs.TrainBatches(split.source, loading_of(config), make_mesh(), start)
        return [{k: np.asarray(v) for k, v in next(stream).items()} for _ in range(count)]

    by_id, three = {}, run(0, 8)
    for step, batch in enumerate(three):
        assert batch['image'].shape == (50, 3, 12, 12, 1) and batch['label'].shape == (50,)
        np.testing.assert_array_equal(batch['id'], batch_ids(5, 360, 50, step, 2)[0])
        for example, views in zip(batch['id'].tolist(), batch['image'], strict=True):
            by_id.setdefault(example, []).extend(view.tobytes() for view in views)
    # No two views of an image are equal.
    for drawn in by_id.values():
        assert len(set(drawn)) == len(drawn)
    np.testing.assert_array_equal(run(5, 1)[0]['image'], three[5]['image'])


def test_images_of_several_labels():
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    labels = (np.arange(30)[:, None] % np.array([2, 3]) == 0).astype(np.float32)
    source = arrays.from_arrays('several', images, labels, ('two', 'three'))
    seen = [
        {k: np.asarray(v) for k, v in b.items()}
        for b in inputs.EvalBatches(source, '', 16, make_mesh())
    ]
    rows = np.concatenate([b['label'] for b in seen])
    np.testing.assert_array_equal(rows, [*labels, [0, 0], [0, 0]])
    assert rows.dtype == np.float32
