"""Selection of logits and mapping of labels for another data set."""

import numpy as np
import pytest
import tensorflow_datasets as tfds_lib

from vision.core.errors import UserError
from vision.data.arrays import from_arrays
from vision.data.tfds_source import tfds
from vision.evaluation.classes import SUBSETS, match


def source(*names):
    return from_arrays('other', np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, int), names)


def relabel(classes, labels, source):
    """Checks a data set's labels, and returns their positions among the compared classes."""
    classes.check(labels, source)
    return classes.labels[labels]


RUN = ('ant', 'bee', 'cat', 'dog')


def test_the_same_classes_need_nothing():
    classes = match(RUN, source(*RUN))
    assert classes.logits is None and classes.names == RUN
    np.testing.assert_array_equal(relabel(classes, np.arange(4), source(*RUN)), np.arange(4))


def test_fewer_classes_in_another_order_are_found_by_name():
    classes = match(RUN, source('dog', 'bee'))
    assert classes.names == ('dog', 'bee')
    np.testing.assert_array_equal(classes.logits, [3, 1])
    np.testing.assert_array_equal(relabel(classes, np.array([1, 0]), source('dog', 'bee')), [1, 0])


def test_or_compared_with_all_of_the_runs():
    classes = match(RUN, source('dog', 'bee'), 'all')
    assert classes.logits is None and classes.names == RUN
    np.testing.assert_array_equal(relabel(classes, np.array([1, 0]), source('dog', 'bee')), [1, 3])


@pytest.mark.parametrize(('run', 'names'), [(RUN, '0123'), ('0123', RUN)])
def test_numbers_are_no_names(run, names):
    assert match(tuple(run), source(*names)).logits is None


def test_a_data_set_of_one_nameless_class_is_not_easier():
    """Its only label is 0. Compared with that class alone, every answer would be correct."""
    classes = match(RUN, source('0'))
    assert classes.logits is None and classes.names == RUN
    with pytest.raises(UserError, match='of its 5 classes are not among the 4'):
        match(RUN, source(*'01234'))


@pytest.mark.parametrize('names', [range(11), ['00', *(f'{i:02}' for i in range(1, 11))]])
def test_numbered_folders_are_the_classes_of_these_indices(names):
    run = tuple(f'word {i}' for i in range(11))
    classes = match(run, source(*map(str, names)))
    assert classes.logits is None and classes.names == run
    np.testing.assert_array_equal(classes.labels, np.arange(11))
    some = match(run, source('3', '10'))
    assert some.names == ('word 3', 'word 10')
    np.testing.assert_array_equal(some.logits, [3, 10])
    with pytest.raises(UserError, match='not among the 11'):
        match(run, source('3', '11'))
    text = tuple(sorted(map(str, range(11))))  # of a run with numbered folders, sorted as text
    found = match(text, source(*run))
    assert [found.names[i] for i in found.labels] == [str(i) for i in range(11)]


def test_a_class_that_the_run_does_not_know():
    with pytest.raises(UserError, match=r"2 of its 3 classes.*'dogs' .did you mean 'dog'"):
        match(RUN, source('cat', 'dogs', 'eel'))


def test_a_label_that_is_missing():
    with pytest.raises(UserError, match='label -1'):
        relabel(match(RUN, source(*RUN)), np.array([2, -1]), source(*RUN))


@pytest.mark.parametrize(
    'name', ['imagenet_a', 'imagenet_r', 'imagenet_v2', 'imagenet2012_corrupted']
)
def test_imagenets_relatives_by_their_tfds_names(name):
    """TFDS labels all of them with ImageNet's 1,000 synsets; -A and -R use 200 of them."""
    with tfds_lib.testing.mock_data(num_examples=3, policy=tfds_lib.testing.MockPolicy.USE_CODE):
        imagenet = tfds('train', 'imagenet2012').class_names
        other = tfds('validation' if 'corrupted' in name else 'test', name)
    classes = match(imagenet, other)
    if name not in SUBSETS:
        assert classes.logits is None and classes.names == imagenet
        return
    np.testing.assert_array_equal(classes.logits, SUBSETS[name])
    assert len(classes.names) == 200 and classes.names[0] == imagenet[SUBSETS[name][0]]
    np.testing.assert_array_equal(relabel(classes, classes.logits, other), np.arange(200))
    with pytest.raises(UserError, match="'n01440764', which is not among the 200"):  # the tench
        relabel(classes, np.array([0]), other)


@pytest.mark.parametrize(
    ('name', 'config'),
    [('cifar10', 'cifar10_corrupted/fog_3'), ('mnist', 'mnist_corrupted/shear')],
)
def test_corrupted_sets(name, config):
    with tfds_lib.testing.mock_data(num_examples=3, policy=tfds_lib.testing.MockPolicy.USE_CODE):
        run, other = tfds('train', name), tfds('test', config)
    assert match(run.class_names, other).logits is None


def test_the_200_of_imagenet_r_that_have_names_of_their_own():
    """ImageNet-R's own folder names; goldfish, pelican and volcano are looked up by hand."""
    with tfds_lib.testing.mock_data(num_examples=1, policy=tfds_lib.testing.MockPolicy.USE_CODE):
        names = tfds('train', 'imagenet2012').class_names
    chosen = {names[i] for i in SUBSETS['imagenet_r']}
    assert {'n01443537', 'n02051845', 'n09472597'} <= chosen and 'n01440764' not in chosen
    shared = set(SUBSETS['imagenet_a']) & set(SUBSETS['imagenet_r'])
    assert {len(set(s)) for s in SUBSETS.values()} == {200} and 50 < len(shared) < 200


def test_numbers_in_another_order_are_found_by_name():
    natural = tuple(map(str, range(12)))
    as_text = tuple(sorted(natural))  # 0, 1, 10, 11, 2, …: the order of a folder's classes
    for run, other in ((as_text, natural), (natural, as_text)):
        classes = match(run, source(*other))
        told = [classes.names[i] for i in relabel(classes, np.arange(12), source(*other))]
        assert tuple(told) == other
