"""The tf.data pipeline: examples, order, exact pixels, and unreadable images."""

import dataclasses
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiers import examples, split
from vision.core.errors import UserError
from vision.data.order import batch_ids, eval_ids
from vision.data.source import ArraySource, BadImage, FileSource, Source
from vision.preprocess import cache as cache_lib
from vision.preprocess import pipeline
from vision.preprocess.pipeline import eval_batches, train_batches

TRAIN = 'decode|random_resized_crop(32)|flip_lr|brightness(0.4)'
EVAL = 'decode|resize_small(40)|central_crop(32)'


def take(batches, count):
    return [{k: v.copy() for k, v in next(batches).items()} for _ in range(count)]


def equal(left, right):
    return all(np.array_equal(a[k], b[k]) for a, b in zip(left, right, strict=True) for k in a)


@pytest.fixture
def arrays(photo):
    images = np.stack([photo[i : i + 48, i : i + 40] for i in range(23)])
    return ArraySource('arrays', ('a', 'b'), images, np.arange(23, dtype=np.int32) % 2)


@pytest.fixture(params=[0, pipeline._FEW], ids=['data_set', 'direct'])
def route(request, monkeypatch):
    """Evaluates with tf.data, and without it, as for few images."""
    monkeypatch.setattr(pipeline, '_FEW', request.param)


def test_batches_are_what_the_contract_says(jpegs):
    for batch in [next(train_batches(jpegs, TRAIN, batch_size=8, seed=3)),
                  next(eval_batches(jpegs, EVAL, batch_size=8))]:  # fmt: skip
        assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
            'image': ((8, 32, 32, 3), 'uint8'),
            'label': ((8,), 'int32'),
            'id': ((8,), 'int32'),
            'mask': ((8,), 'float32'),
        }


def test_ids_are_those_of_the_order_and_labels_follow(jpegs):
    batches = train_batches(jpegs, TRAIN, batch_size=16, seed=5)
    for step in range(9):
        batch = next(batches)
        np.testing.assert_array_equal(batch['id'], batch_ids(5, 60, 16, step)[0])
        np.testing.assert_array_equal(batch['label'], jpegs.labels[batch['id']])
        assert batch['mask'].all()


def test_two_runs_have_the_same_bits_and_another_seed_has_not(jpegs):
    run = take(train_batches(jpegs, TRAIN, batch_size=16, seed=5), 6)
    assert equal(run, take(train_batches(jpegs, TRAIN, batch_size=16, seed=5), 6))
    assert not equal(run, take(train_batches(jpegs, TRAIN, batch_size=16, seed=6), 6))


@pytest.mark.parametrize('start', split([1, 3, 11], [3]))
def test_seeking_gives_the_bits_of_an_uninterrupted_run(jpegs, start):
    run = take(train_batches(jpegs, TRAIN, batch_size=16, seed=5), 13)
    resumed = train_batches(jpegs, TRAIN, batch_size=16, seed=5, start_step=start)
    assert equal(run[start:], take(resumed, 13 - start))


def test_augmentation_depends_on_seed_epoch_and_id_and_not_on_the_batch(jpegs):
    small = take(train_batches(jpegs, TRAIN, batch_size=5, seed=5), 24)
    large = take(train_batches(jpegs, TRAIN, batch_size=40, seed=5), 3)
    np.testing.assert_array_equal(
        *(np.concatenate([b['image'] for b in r]) for r in (small, large))
    )
    by_epoch = [{b['id'][i]: b['image'][i] for b in e for i in range(5)}
                for e in (small[:12], small[12:])]  # fmt: skip
    changed = [not np.array_equal(by_epoch[0][i], by_epoch[1][i]) for i in range(60)]
    assert np.mean(changed) > 0.95


@pytest.mark.parametrize('hosts', split([2, 4], [2]))
def test_hosts_batches_together_are_one_hosts(jpegs, hosts):
    one = take(train_batches(jpegs, TRAIN, batch_size=16, seed=1), 5)
    many = [
        take(train_batches(jpegs, TRAIN, batch_size=16, seed=1, process_index=h,
                           process_count=hosts), 5)
        for h in range(hosts)
    ]  # fmt: skip
    together = [
        {k: np.concatenate([parts[step][k] for parts in many]) for k in one[0]} for step in range(5)
    ]
    assert equal(one, together)


def test_repeated_augmentation_shows_views_that_differ_and_can_be_sought(jpegs):
    settings = {'batch_size': 16, 'seed': 1, 'repeats': 4}
    one = take(train_batches(jpegs, TRAIN, **settings), 8)
    for step, batch in enumerate(one):
        np.testing.assert_array_equal(batch['id'], batch_ids(1, 60, 16, step, 4)[0])
    epoch = {k: np.concatenate([batch[k] for batch in one])[:60] for k in one[0]}
    assert len(np.unique(epoch['id'])) == 15
    assert len({image.tobytes() for image in epoch['image']}) == 60
    assert equal(one[5:], take(train_batches(jpegs, TRAIN, start_step=5, **settings), 3))
    halves = [
        take(train_batches(jpegs, TRAIN, process_index=h, process_count=2, **settings), 8)
        for h in range(2)
    ]
    for step, batch in enumerate(one):
        for key, value in batch.items():
            together = np.concatenate([half[step][key] for half in halves])
            np.testing.assert_array_equal(together, value)


@given(n=st.integers(1, 200), local=st.integers(1, 16), hosts=st.integers(1, 8))
@examples(50)
def test_evaluation_shares_are_disjoint_cover_and_are_even(n, local, hosts):
    steps = -(-n // (local * hosts))
    shares = []
    for host in range(hosts):
        ids = np.concatenate(
            [eval_ids(n, local * hosts, step, host, hosts) for step in range(steps)]
        )
        shares.append(ids[ids >= 0])
        assert len(ids) == steps * local
        assert (np.diff(shares[-1]) > 0).all()
    assert sorted(np.concatenate(shares)) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(('batch_size', 'count'), [(16, 4), (60, 1), (64, 1), (7, 9)])
def test_evaluation_counts_every_example_once_and_pads(jpegs, batch_size, count):
    batches = list(eval_batches(jpegs, EVAL, batch_size=batch_size))
    assert len(batches) == count
    ids, mask, labels, images = (
        np.concatenate([b[k] for b in batches]) for k in ('id', 'mask', 'label', 'image')
    )
    np.testing.assert_array_equal(ids[:60], np.arange(60))
    np.testing.assert_array_equal(labels[:60], jpegs.labels)
    assert mask[:60].all()
    assert not mask[60:].any() and (ids[60:] == -1).all() and not labels[60:].any()
    assert not images[60:].any()


@pytest.mark.usefixtures('route')
def test_evaluation_pixels_do_not_depend_on_the_batch(jpegs):
    small, large = (
        np.concatenate([b['image'] for b in eval_batches(jpegs, EVAL, batch_size=size)])[:60]
        for size in (7, 60)
    )
    np.testing.assert_array_equal(small, large)


def test_arrays_go_through_the_same_ops(arrays):
    batches = eval_batches(arrays, 'central_crop(32)', batch_size=10)
    images = np.concatenate([b['image'] for b in batches])[:23]
    np.testing.assert_array_equal(images, arrays.images[:, 8:40, 4:36])
    batch = next(train_batches(arrays, 'random_crop(32)|flip_lr', batch_size=10, seed=0))
    np.testing.assert_array_equal(batch['id'], batch_ids(0, 23, 10, 0)[0])


@pytest.mark.parametrize('cache', ['raw', 'decoded'])
def test_caches_change_no_bit(jpegs, tmp_path, cache):
    ops = 'decode|resize_small(40)|random_crop(32)'
    plain = take(train_batches(jpegs, ops, batch_size=20, seed=2), 9)
    paths = [shutil.copy(path, tmp_path) for path in jpegs.paths]
    source = dataclasses.replace(jpegs, paths=tuple(paths))
    cached = train_batches(source, ops, batch_size=20, seed=2, cache=cache)
    assert equal(plain[:3], take(cached, 3))
    for path in paths:  # the second and third epoch are read from the cache
        os.remove(path)
    assert equal(plain[3:], take(cached, 6))
    size = 60 * 120 * 160 * 3 if cache == 'decoded' else sum(map(os.path.getsize, jpegs.paths))
    assert f'about {size / 2**20:.1f} MiB for 60 images' in cache_lib.report(jpegs, 3, cache)


def test_raw_cache_is_for_files(arrays):
    with pytest.raises(UserError, match=r"data\.cache='raw' is for image files"):
        train_batches(arrays, 'central_crop(32)', batch_size=2, seed=0, cache='raw')


@pytest.mark.parametrize(
    ('ops', 'why'),
    [
        ('random_crop(32)', 'must begin with decode'),
        ('', 'must begin with decode'),
        ('decode', 'makes images of different sizes'),
        ('decode|resize_small(40)', 'makes images of different sizes'),
        ('decode|resise(32)', "Did you mean 'resize'"),
        ('decode|resize(32, method="cubic")', "Did you mean 'bicubic'"),
        ('decode|resize', 'missing a required argument'),
        ('decode|flip_lr(0.5)', 'too many positional arguments'),
        ('decode(channels=1)|resize(32)|hue(0.1)', 'cannot be applied to the images'),
        ('decode|resize(32)|central_crop(64)', 'smaller'),
        ('decode|central_crop(200)', 'smaller'),
    ],
)
def test_op_strings_that_do_not_fit_are_the_users_mistake(jpegs, ops, why):
    with pytest.raises(UserError, match=why) as error:
        next(eval_batches(jpegs, ops, batch_size=4))
    assert '\n' not in str(error.value)


def broken_folder(root, source, encode, photo, every=10):
    """Copies of real images, every tenth of them damaged in one of five ways."""
    paths, reasons = [], {}
    for i in range(source.num_examples):
        path = root / f'{i:04}.jpg'
        data = Path(source.paths[i]).read_bytes()
        if i % every == every - 1:
            kind = i // every % 5
            # Cut off, another format, empty, absurd size, cut off near the end.
            bad, why = [
                (data[: len(data) // 2], 'truncated JPEG'),
                (b'path,label\na.jpg,cat\n', 'not an image'),
                (b'', 'empty file'),
                (absurd(data), 'claims 40000x40000 pixels; the limit is 200 million'),
                (data[:-40], 'truncated JPEG'),
            ][kind]
            reasons[str(path)] = why
            data = bad
        path.write_bytes(data)
        paths.append(str(path))
    return dataclasses.replace(source, paths=tuple(paths)), reasons


def absurd(data):
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + (40000).to_bytes(2, 'big') * 2 + data[at + 4 :]


def test_corrupt_images_in_training_are_masked_copies_and_move_nothing(
    jpegs, tmp_path, encode, photo
):
    source, reasons = broken_folder(tmp_path, jpegs, encode, photo)
    good = take(train_batches(jpegs, TRAIN, batch_size=16, seed=1), 8)
    batches = train_batches(source, TRAIN, batch_size=16, seed=1, max_corrupt=0.1)
    bad = take(batches, 8)
    bad_ids = [i for i, path in enumerate(source.paths) if path in reasons]
    # Other images keep their slots and pixels; damaged ones become copies with mask 0.
    for here, there in zip(bad, good, strict=True):
        np.testing.assert_array_equal(here['id'], there['id'])
        is_bad = np.isin(here['id'], bad_ids)
        np.testing.assert_array_equal(here['mask'], np.where(is_bad, 0, 1))
        np.testing.assert_array_equal(here['image'][~is_bad], there['image'][~is_bad])
        np.testing.assert_array_equal(here['label'][~is_bad], there['label'][~is_bad])
        for slot in np.flatnonzero(is_bad):
            same = [np.array_equal(here['image'][slot], image) for image in here['image'][~is_bad]]
            assert any(same)
    assert batches.corrupt == reasons
    resumed = train_batches(source, TRAIN, batch_size=16, seed=1, max_corrupt=0.1, start_step=3)
    assert equal(bad[3:], take(resumed, 5))


def test_training_stops_when_more_than_max_corrupt_are(jpegs, tmp_path, encode, photo):
    source, reasons = broken_folder(tmp_path, jpegs, encode, photo)
    with pytest.raises(UserError, match=r'4 images of 60 .* data.max_corrupt=0.05') as error:
        take(train_batches(source, TRAIN, batch_size=16, seed=1, max_corrupt=0.05), 8)
    assert any(path in str(error.value) for path in reasons)


def test_folder_of_nothing_but_corrupt_images_stops_at_once(tmp_path, jpegs):
    path = tmp_path / 'a.jpg'
    path.write_bytes(b'no image')
    source = dataclasses.replace(jpegs, paths=(str(path),) * 60)
    with pytest.raises(UserError, match='not an image'):
        next(train_batches(source, TRAIN, batch_size=16, seed=1))


@pytest.mark.usefixtures('route')
def test_evaluation_names_a_corrupt_image(jpegs, tmp_path, encode, photo):
    source, reasons = broken_folder(tmp_path, jpegs, encode, photo)
    with pytest.raises(UserError, match='--skip_corrupt') as error:
        list(eval_batches(source, EVAL, batch_size=16))
    assert any(f'{path}: {reason}' in str(error.value) for path, reason in reasons.items())


@pytest.mark.usefixtures('route')
def test_evaluation_skips_corrupt_images_on_request(jpegs, tmp_path, encode, photo):
    source, reasons = broken_folder(tmp_path, jpegs, encode, photo)
    batches = eval_batches(source, EVAL, batch_size=16, skip_corrupt=True)
    good = list(eval_batches(jpegs, EVAL, batch_size=16))
    bad = list(batches)
    assert batches.corrupt == reasons
    assert sum(b['mask'].sum() for b in bad) == 54
    for here, there in zip(bad, good, strict=True):
        np.testing.assert_array_equal(here['id'], there['id'])
        expected = np.where((here['mask'] > 0)[:, None, None, None], there['image'], 0)
        np.testing.assert_array_equal(here['image'], expected)


@pytest.mark.usefixtures('route')
def test_evaluation_skips_up_to_max_corrupt(jpegs, tmp_path, encode, photo):
    source, reasons = broken_folder(tmp_path, jpegs, encode, photo)
    batches = eval_batches(source, EVAL, batch_size=16, max_corrupt=0.1)
    assert sum(b['mask'].sum() for b in batches) == 54 and batches.corrupt == reasons
    with pytest.raises(UserError, match=r'4 images of 60 .*data\.max_corrupt=0\.05'):
        list(eval_batches(source, EVAL, batch_size=16, max_corrupt=0.05))


@pytest.mark.usefixtures('route')
def test_a_batch_of_which_nothing_can_be_read_is_masked():
    class Broken(Source):
        name, class_names, num_examples = 'broken', ('a',), 3

        def read(self, ids):
            raise BadImage('lost')

    batches = eval_batches(Broken(), EVAL, batch_size=2, skip_corrupt=True)
    masks = [batch['mask'].sum() for batch in batches]
    assert masks == [0, 0] and len(batches.corrupt) == 3


@pytest.mark.usefixtures('route')
def test_unreadable_files_have_their_reasons(jpegs, tmp_path):
    source = dataclasses.replace(
        jpegs, paths=(jpegs.paths[0], str(tmp_path / 'none.jpg'), str(tmp_path),
                      jpegs.paths[0] + '\0', '\ud800.jpg', 'gs://none/none.jpg'),
        labels=np.full(6, -1, np.int32),
    )  # fmt: skip
    batches = eval_batches(source, EVAL, batch_size=6, skip_corrupt=True)
    batch = next(batches)
    np.testing.assert_array_equal(batch['mask'], [1, 0, 0, 0, 0, 0])
    no = 'no such file'
    address = f'{no}; URLs are not fetched, download the image first'
    assert list(batches.corrupt.values()) == [no, 'is a folder', no, no, address]


@pytest.mark.slow
def test_a_thousand_real_images_of_which_a_tenth_are_broken(jpegs, tmp_path, encode, photo):
    many = FileSource('many', jpegs.class_names, jpegs.paths * 17,
                      np.tile(jpegs.labels, 17))  # fmt: skip
    source, reasons = broken_folder(tmp_path, many, encode, photo)
    batches = eval_batches(source, EVAL, batch_size=128, skip_corrupt=True)
    assert sum(b['mask'].sum() for b in batches) == 1020 - 102
    assert batches.corrupt == reasons
    training = train_batches(source, TRAIN, batch_size=128, seed=0, max_corrupt=0.101)
    for step in range(17):
        batch = next(training)
        np.testing.assert_array_equal(batch['id'], batch_ids(0, 1020, 128, step)[0])
    assert len(training.corrupt) == 102


@pytest.mark.slow
def test_the_middle_of_an_epoch_of_a_hundred_thousand_is_reached_in_two_seconds(jpegs):
    paths = (jpegs.paths * 1667)[:100_000]
    source = FileSource('large', jpegs.class_names, paths, np.zeros(100_000, np.int32))
    next(train_batches(source, TRAIN, batch_size=64, seed=0))  # imports
    begin = time.perf_counter()
    batch = next(train_batches(source, TRAIN, batch_size=64, seed=0, start_step=50_000 // 64))
    assert time.perf_counter() - begin < 2
    np.testing.assert_array_equal(batch['id'], batch_ids(0, 100_000, 64, 50_000 // 64)[0])


@pytest.mark.slow
def test_memory_is_flat_over_three_epochs_of_twenty_thousand_images(jpegs):
    paths = list(jpegs.paths * 334)[:20_000]
    random.Random(0).shuffle(paths)
    source = FileSource('large', jpegs.class_names, tuple(paths), np.zeros(20_000, np.int32))
    batches = train_batches(source, TRAIN, batch_size=100, seed=0)
    rss = []
    for step in range(600):
        next(batches)
        if step % 200 == 199:
            with open('/proc/self/statm') as file:
                rss.append(int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20)
    print('MiB after each epoch:', rss)
    assert rss[2] - rss[0] < 30


def test_tensorflow_sees_no_accelerator():
    from vision.core.startup import tf_cpu

    assert tf_cpu().config.get_visible_devices('GPU') == []


@pytest.mark.parametrize('repeats', split([1, 2], [2]))
def test_views_of_an_image_are_draws_of_their_own(jpegs, repeats):
    settings = {'batch_size': 8, 'seed': 3, 'repeats': repeats}
    one = take(train_batches(jpegs, TRAIN, views=1, **settings), 16)
    assert equal(one, take(train_batches(jpegs, TRAIN, **settings), 16))
    three = take(train_batches(jpegs, TRAIN, views=3, **settings), 16)
    for batch, alone in zip(three, one, strict=True):
        assert batch['image'].shape == (8, 3, 32, 32, 3) and batch['mask'].shape == (8,)
        np.testing.assert_array_equal(batch['id'], alone['id'])
    by_id = {}
    for batch in three:
        for example, views in zip(batch['id'].tolist(), batch['image'], strict=True):
            by_id.setdefault(example, []).extend(view.tobytes() for view in views)
    for drawn in by_id.values():  # over two epochs and all repeats; a white image stays white
        shown = [view for view in drawn if set(view) != {255}]
        assert len(set(shown)) == len(shown)
    assert equal(
        three[5:7], take(train_batches(jpegs, TRAIN, views=3, start_step=5, **settings), 2)
    )


def test_an_image_that_cannot_be_read_has_no_view(jpegs, tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    source = dataclasses.replace(jpegs, paths=(str(tmp_path / 'bad.jpg'), *jpegs.paths[1:]))
    batches = train_batches(source, TRAIN, batch_size=60, seed=1, views=2, max_corrupt=0.1)
    batch = next(batches)
    assert batch['mask'].sum() == 59 and list(batches.corrupt.values()) == ['not an image']
    (slot,) = np.flatnonzero(batch['id'] == 0)
    assert any(
        np.array_equal(batch['image'][slot], batch['image'][i]) for i in range(60) if i != slot
    )


@pytest.mark.parametrize('cache', split(['none', 'decoded'], ['none']))
@pytest.mark.usefixtures('route')
def test_images_of_several_labels(jpegs, tmp_path, cache):
    labels = np.stack([np.arange(60) % 2, np.arange(60) % 3 == 0, np.zeros(60)], 1).astype(
        np.float32
    )
    source = dataclasses.replace(jpegs, class_names=tuple('abc'), labels=labels)
    for batch in take(
        train_batches(source, TRAIN, batch_size=16, seed=1, repeats=2, cache=cache), 5
    ):
        np.testing.assert_array_equal(batch['label'], labels[batch['id']])
        assert batch['label'].dtype == np.float32
    # An unreadable image has labels 0 in evaluation.
    (tmp_path / 'bad.jpg').write_bytes(b'no image')
    broken = dataclasses.replace(source, paths=(*source.paths[:-1], str(tmp_path / 'bad.jpg')))
    batches = list(eval_batches(broken, EVAL, batch_size=16, skip_corrupt=True))
    rows, mask = (np.concatenate([b[key] for b in batches]) for key in ('label', 'mask'))
    np.testing.assert_array_equal(rows[:60], labels)
    assert not rows[60:].any() and mask.sum() == 59
    # In training it gets the labels of the image that it copies.
    batch = next(train_batches(broken, TRAIN, batch_size=60, seed=1, max_corrupt=0.1))
    (slot,) = np.flatnonzero(batch['mask'] == 0)
    (copied,) = [
        i for i in range(60) if i != slot and (batch['image'][i] == batch['image'][slot]).all()
    ]
    np.testing.assert_array_equal(batch['label'][slot], labels[batch['id'][copied]])
