import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vision.data import order

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 500)


@given(seeds, st.integers(0, 100), sizes)
def test_an_epoch_holds_every_id_once(seed, epoch, n):
    np.testing.assert_array_equal(np.sort(order.epoch_order(seed, epoch, n)), np.arange(n))


@given(seeds, sizes, st.integers(1, 64), st.integers(0, 20))
def test_batches_are_the_stream_cut_in_pieces(seed, n, batch_size, step):
    """Starting at a step gives the same batches as counting from the start, without gaps."""
    epochs = (step + 1) * batch_size // n + 1
    stream = np.concatenate([order.epoch_order(seed, e, n) for e in range(epochs)])
    ids, epoch_of = order.batch_ids(seed, n, batch_size, step)
    np.testing.assert_array_equal(ids, stream[step * batch_size : (step + 1) * batch_size])
    np.testing.assert_array_equal(
        epoch_of, np.arange(step * batch_size, (step + 1) * batch_size) // n
    )


@given(seeds, st.integers(0, 20), sizes, st.integers(2, 5))
def test_with_repeats_an_epoch_is_torchvisions(seed, epoch, n, repeats):
    """An epoch is the first n of a shuffled order with each id `repeats` times."""
    ids, views = order.batch_ids(seed, n, n, epoch, repeats)  # the batch is one epoch
    expected = np.repeat(order.epoch_order(seed, epoch, n), repeats)[:n]
    np.testing.assert_array_equal(np.sort(ids), np.sort(expected))
    drawn, counts = np.unique(ids, return_counts=True)
    assert len(drawn) == -(-n // repeats) and (counts == repeats).sum() == n // repeats
    assert len(set(zip(ids, views, strict=True))) == n  # no view occurs twice
    np.testing.assert_array_equal(views // repeats, epoch)


@given(seeds, sizes, st.integers(1, 64), st.integers(0, 20), st.integers(1, 5))
def test_with_repeats_batches_are_the_stream_cut_in_pieces(seed, n, batch_size, step, repeats):
    epochs = (step + 1) * batch_size // n + 1
    stream = np.concatenate(
        [np.repeat(order.epoch_order(seed, e, n), repeats)[:n] for e in range(epochs)]
    )
    ids, _ = order.batch_ids(seed, n, batch_size, step, repeats)
    cut = stream[step * batch_size : (step + 1) * batch_size]
    np.testing.assert_array_equal(np.sort(ids), np.sort(cut))


def test_views_of_an_image_lie_in_different_parts_of_the_batch():
    ids, views = order.batch_ids(3, 1000, 32, 5, 4)
    for part in ids.reshape(4, 8):
        assert len(set(part)) == 8
    for image in np.unique(ids):
        assert sorted(views[ids == image]) == [0, 1, 2, 3]
    assert (ids != np.roll(ids, 1)).all()  # neighbours, which mixup mixes, differ


def test_orders_differ_between_epochs_and_seeds():
    orders = [order.epoch_order(s, e, 1000) for s in range(3) for e in range(3)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).mean() < 0.01


def test_positions_are_uniform():
    """Over many epochs each id takes each position about equally often."""
    n, epochs = 8, 4000
    places = np.array([np.argsort(order.epoch_order(7, e, n)) for e in range(epochs)])
    for i in range(n):
        counts = np.bincount(places[:, i], minlength=n)
        assert ((counts - epochs / n) ** 2 / (epochs / n)).sum() < 24.3  # chi², 7 df, p = .001


def test_the_order_is_the_same_on_every_machine():
    """A golden hash: another order would break the resuming of all existing runs."""
    ids = order.epoch_order(3, 5, 60_000).astype('<i8')
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    assert digest == '8d7e1da30aa2c45ac564f54ac61d4e27181099905b08fc7e49fba6c3c992251f'
