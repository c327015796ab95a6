"""AutoAugment's transformations against Pillow, and its choices against the papers' tables."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tests.tiers import quick
from vision.core.errors import UserError
from vision.preprocess import ops as ops_lib
from vision.preprocess.ops import autoaugment as aa
from vision.preprocess.ops.enhance import NAMES, apply_one
from vision.preprocess.ops.on_host import apply as apply_ops
from vision.preprocess.ops.on_host import draw

NEAREST = Image.Resampling.NEAREST


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, NEAREST)


PILLOW = {
    'Identity': lambda image, m: image,
    'ShearX': lambda image, m: affine(image, 1, m, 0, 0, 1, 0),
    'ShearY': lambda image, m: affine(image, 1, 0, 0, m, 1, 0),
    'TranslateX': lambda image, m: affine(image, 1, 0, -int(m), 0, 1, 0),
    'TranslateY': lambda image, m: affine(image, 1, 0, 0, 0, 1, -int(m)),
    'Rotate': lambda image, m: image.rotate(m, NEAREST),
    'Brightness': lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m),
    'Color': lambda image, m: ImageEnhance.Color(image).enhance(1 + m),
    'Contrast': lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m),
    'Sharpness': lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m),
    'Posterize': lambda image, m: ImageOps.posterize(image, int(m)),
    'Solarize': lambda image, m: ImageOps.solarize(image, m),
    'AutoContrast': lambda image, m: ImageOps.autocontrast(image),
    'Equalize': lambda image, m: ImageOps.equalize(image),
    'Invert': lambda image, m: ImageOps.invert(image),
}
MAGNITUDES = {
    **dict.fromkeys(('ShearX', 'ShearY'), (-0.3, 0.1, 0.99)),
    **dict.fromkeys(('TranslateX', 'TranslateY'), (-20.7, 0.0, 32.0)),
    'Rotate': (-30.0, 12.0, 135.0),
    **dict.fromkeys(('Brightness', 'Color', 'Contrast', 'Sharpness'), (-0.9, -0.3, 0.0, 0.9)),
    'Posterize': (2.0, 4.0, 8.0),
    'Solarize': (0.0, 100.0, 127.5, 255.0),
}


def apply(image, name, magnitude):
    index = tf.constant(NAMES.index(name))
    return apply_one(tf.constant(image), index, tf.constant(magnitude, tf.float64)).numpy()


@pytest.mark.parametrize('name', NAMES)
def test_transformations_are_pillows(photos, name):
    for photo in photos[2:]:
        for magnitude in MAGNITUDES.get(name, (0.0,)):
            ours = apply(photo, name, magnitude)
            theirs = np.asarray(PILLOW[name](Image.fromarray(photo), magnitude))
            difference = np.abs(ours.astype(int) - theirs)
            # Rounding decides between equally near neighbours, and at the borders.
            moved = name in ('ShearX', 'ShearY', 'Rotate')
            assert (difference > 1).mean() <= (0.01 if moved else 0), (name, magnitude)


def test_equalize_and_autocontrast_of_one_colour_change_nothing():
    flat = np.full((9, 9, 3), 77, np.uint8)
    for name in ('Equalize', 'AutoContrast'):
        np.testing.assert_array_equal(apply(flat, name, 0.0), flat)


@pytest.mark.parametrize('size', [(1, 9), (9, 1), (1, 1), (2, 2), (2, 9), (9, 2), (3, 3)])
def test_the_smallest_images_are_transformed_as_pillow_does(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for name in NAMES:
        magnitude = MAGNITUDES.get(name, (0.0,))[0]
        ours = apply(image, name, magnitude)
        if name not in ('ShearX', 'ShearY', 'Rotate'):  # they have equally near neighbours
            theirs = np.asarray(PILLOW[name](Image.fromarray(image), magnitude))
            assert np.abs(ours.astype(int) - theirs).max() <= 1, name


def test_smoothing_kernel_is_pillows():
    assert ImageFilter.SMOOTH.filterargs == ((3, 3), 13, 0, (1, 1, 1, 1, 5, 1, 1, 1, 1))


def chosen(monkeypatch, text, count, side=331):
    """Returns the (name, magnitude) pairs that an op chooses for ids 0 … count − 1."""
    seen = []

    def record(image, index, magnitude):
        tf.numpy_function(lambda i, m: seen.append((NAMES[i], float(m))) or np.int32(0),
                          [index, magnitude], tf.int32)  # fmt: skip
        return image

    monkeypatch.setattr(aa, 'apply_one', record)
    ops = ops_lib.parse(text)
    image = tf.zeros([side, 2 * side, 3], tf.uint8)
    run = tf.function(lambda d: apply_ops(ops, image, d))
    for row in draw(0, np.zeros(count, int), np.arange(count), 1):
        run(row)
    return seen


def test_randaugment_chooses_evenly_of_one_magnitude(monkeypatch):
    seen = chosen(monkeypatch, 'randaugment(2, 15)', 1000)
    names, counts = np.unique([name for name, _ in seen], return_counts=True)
    assert set(names) == set(NAMES) - {'Invert'}
    assert (np.abs(counts - 2000 / 14) < 5 * np.sqrt(2000 / 14)).all()
    expected = {
        'ShearX': 0.15, 'ShearY': 0.15, 'TranslateX': 150, 'TranslateY': 75, 'Rotate': 15,
        'Brightness': 0.45, 'Color': 0.45, 'Contrast': 0.45, 'Sharpness': 0.45,
    }  # fmt: skip
    for name, size in expected.items():
        values = [m for n, m in seen if n == name]
        np.testing.assert_allclose(np.abs(values), size)
        assert 0.3 < np.mean(np.sign(values) > 0) < 0.7
    assert {m for n, m in seen if n == 'Posterize'} == {6.0}
    assert {m for n, m in seen if n == 'Solarize'} == {127.5}


@pytest.mark.slow
def test_randaugment_applies_what_it_draws_with_the_probability(monkeypatch):
    seen = chosen(monkeypatch, 'randaugment(2, 15, 0.5)', 1000)
    left_out = np.mean([name == 'Identity' for name, _ in seen])
    assert abs(left_out - (0.5 + 0.5 / 14)) < 5 * np.sqrt(0.25 / 2000)


@pytest.mark.slow
def test_trivialaugment_covers_the_wide_ranges(monkeypatch):
    seen = chosen(monkeypatch, 'trivialaugment_wide', 4000)
    assert len(seen) == 4000
    largest = {n: max(abs(m) for name, m in seen if name == n) for n in {n for n, _ in seen}}
    for name, size in (('ShearX', 0.99), ('TranslateY', 32), ('Rotate', 135), ('Color', 0.99),
                       ('Posterize', 8), ('Solarize', 255)):  # fmt: skip
        np.testing.assert_allclose(largest[name], size)
    assert {m for n, m in seen if n == 'Posterize'} == {2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}
    assert len({round(abs(m), 6) for n, m in seen if n == 'Rotate'}) == 31


@pytest.mark.parametrize('policy', [pytest.param('imagenet', marks=pytest.mark.slow), 'cifar10'])
def test_autoaugment_follows_its_table(monkeypatch, policy):
    count = 1500 if quick() else 5000
    seen = chosen(monkeypatch, f'autoaugment("{policy}")', count)
    pairs = [tuple(seen[i : i + 2]) for i in range(0, len(seen), 2)]
    indices, probabilities, _ = aa._policy_arrays(policy)
    share = {name: 0.0 for name in NAMES}
    for pair, chances in zip(indices, probabilities, strict=True):
        for index, chance in zip(pair, chances, strict=True):
            share[NAMES[index]] += chance / 25
            share['Identity'] += (1 - chance) / 25
    for name, expected in share.items():
        measured = np.mean([n == name for pair in pairs for n, _ in pair]) * 2
        assert abs(measured - expected) < 5 * np.sqrt(max(expected, 1e-9) / count) + 1e-9, name


def test_autoaugments_tables_are_the_papers():
    assert [len(aa.POLICIES[p]) for p in ('imagenet', 'cifar10')] == [25, 25]
    assert aa.POLICIES['imagenet'][0] == 'Posterize 0.4 8, Rotate 0.6 9'
    assert aa.POLICIES['imagenet'][24] == 'Equalize 0.8 0, Equalize 0.6 0'
    assert aa.POLICIES['cifar10'][0] == 'Invert 0.1 0, Contrast 0.2 6'
    assert aa.POLICIES['cifar10'][24] == 'TranslateY 0.7 9, AutoContrast 0.9 0'
    table = aa._magnitudes(10, wide=False)
    np.testing.assert_allclose(table[NAMES.index('Rotate'), 9], 30)
    np.testing.assert_array_equal(table[NAMES.index('Posterize')], [8, 8, 7, 7, 6, 6, 5, 5, 4, 4])
    np.testing.assert_allclose(table[NAMES.index('Solarize'), :2], [255, 255 * 8 / 9])


def test_3_augment_is_pillows(photo):
    """DeiT III, section 3.3: grey, solarized at 128, or blurred by a radius of .1 … 2."""
    run = tf.function(lambda d: aa.three_augment(tf.constant(photo), aa.Rng(d)))

    def of(choice, radius=0.1):
        numbers = np.zeros(ops_lib.PER_OP)
        numbers[:2] = (choice + 0.5) / 3, (radius - 0.1) / 1.9
        return np.asarray(run(numbers)).astype(int)

    image = Image.fromarray(photo)
    assert np.abs(of(0) - np.asarray(image.convert('L'))[..., None]).max() <= 1
    np.testing.assert_array_equal(of(1), ImageOps.solarize(image))
    # Pillow approximates the Gaussian by three box filters.
    for radius in (0.1, 1.0, 1.99):
        theirs = np.asarray(image.filter(ImageFilter.GaussianBlur(radius))).astype(int)
        difference = np.abs(of(2, radius) - theirs)
        assert difference.mean() < 1 and difference.max() < 25


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('randaugment(2, 31)', 'magnitude=31 must be a whole number, 0 … 30'),
        ('randaugment(0, 9)', 'num_layers=0'),
        ('autoaugment("imagenette")', "Did you mean 'imagenet'"),
    ],
)
def test_wrong_arguments_are_the_users_mistake(run_op, photo, text, why):
    with pytest.raises(UserError, match=why):
        run_op(text, photo)
