import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision.core.errors import UserError
from vision.data.order import hold_out

label_lists = st.lists(st.integers(0, 5), min_size=2, max_size=300)


@given(label_lists, st.data())
def test_parts_are_disjoint_and_cover_and_have_the_size_asked_for(labels, data):
    labels = np.array(labels)
    count = data.draw(st.integers(0, len(labels) - 1))
    stay, held = hold_out(labels, count)
    assert len(held) == count
    np.testing.assert_array_equal(np.sort(np.concatenate([stay, held])), np.arange(len(labels)))


@given(label_lists, st.floats(0.05, 0.95))
def test_each_class_gives_its_share(labels, fraction):
    labels = np.array(labels)
    total = round(fraction * len(labels))
    if total in (0, len(labels)):
        return
    _, held = hold_out(labels, fraction)
    for cls, size in zip(*np.unique(labels, return_counts=True), strict=True):
        share = size * total / len(labels)
        assert abs((labels[held] == cls).sum() - share) < 1


@pytest.mark.parametrize('count', [10, 11, -1, 1.0e9])
def test_refuses_to_hold_out_what_is_not_there(count):
    with pytest.raises(UserError, match='10 examples'):
        hold_out(np.zeros(10, int), count)


def test_a_class_keeps_its_only_example_for_train():
    labels = np.array([0] * 5 + [1] * 5 + [2] + [3])
    stay, held = hold_out(labels, 0.5)
    np.testing.assert_array_equal(np.bincount(labels[stay], minlength=4), [2, 2, 1, 1])
    assert len(held) == 6


def test_sets_of_labels_are_held_out_in_proportion_and_rare_ones_without_order():
    rng = np.random.default_rng(0)
    common = np.repeat(np.eye(3, dtype=np.float32), [60, 30, 10], axis=0)
    stay, held = hold_out(common, 20)
    np.testing.assert_array_equal(common[held].sum(0), [12, 6, 2])
    np.testing.assert_array_equal(np.sort(np.concatenate([stay, held])), np.arange(100))
    np.testing.assert_array_equal(held, hold_out(common, 20)[1])
    rare = rng.integers(0, 2, (400, 14)).astype(np.float32)  # nearly every set of labels is unique
    _, held = hold_out(rare, 100)
    assert len(held) == 100
    np.testing.assert_allclose(rare[held].mean(0), 0.5, atol=0.2)
