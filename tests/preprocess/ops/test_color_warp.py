"""Colour, geometric and erasing ops against Pillow, scikit-image and the papers' definitions."""

import numpy as np
import pytest
import skimage.color
import skimage.transform
import tensorflow as tf
from PIL import Image, ImageEnhance
from scipy import ndimage

from vision.preprocess.ops import color, resampling
from vision.preprocess.ops.on_host import draw


class Fixed:
    """An Rng that returns given numbers, as fractions of the requested range."""

    def __init__(self, *fractions):
        self._fractions = list(fractions)

    def uniform(self, low=0.0, high=1.0, shape=()):
        count = int(np.prod(shape, dtype=int))
        taken, self._fractions = self._fractions[:count], self._fractions[count:]
        return tf.constant(low + (high - low) * np.reshape(taken, shape), tf.float64)

    def chance(self, probability):
        return self.uniform() < probability


def close(ours, theirs, largest=1, share=0.0):
    """Asserts that at most a fraction `share` of the values differ by more than `largest`."""
    difference = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int))
    assert (difference > largest).mean() <= share


@pytest.mark.parametrize('fraction', [0.0, 0.3, 0.999])
@pytest.mark.parametrize(
    ('op', 'enhancer'),
    [
        (color.brightness, ImageEnhance.Brightness),
        (color.contrast, ImageEnhance.Contrast),
        (color.saturation, ImageEnhance.Color),
    ],
)
def test_jitter_is_pillows(photo, op, enhancer, fraction):
    factor = 0.6 + 0.8 * fraction
    theirs = enhancer(Image.fromarray(photo)).enhance(factor)
    close(op(tf.constant(photo), Fixed(fraction), 0.4), theirs, largest=1)


@pytest.mark.parametrize('turn', [-0.3, 0.0, 0.1, 0.5])
def test_hue_is_scikit_images(photo, turn):
    hsv = skimage.color.rgb2hsv(photo)
    hsv[..., 0] = (hsv[..., 0] + turn) % 1
    theirs = np.floor(skimage.color.hsv2rgb(hsv) * 255 + 0.5)
    close(color.hue(tf.constant(photo), Fixed(turn + 0.5), 0.5), theirs, largest=1)


def test_grayscale_is_pillows(photo, run_op):
    theirs = np.asarray(Image.fromarray(photo).convert('L'))
    ours = run_op('grayscale', photo)
    for channel in range(3):
        close(ours[..., channel], theirs)
    unchanged = [np.array_equal(run_op('grayscale(0.3)', photo, id=i), photo) for i in range(40)]
    assert 20 <= sum(unchanged) <= 37


def test_pca_noise_is_alexnets():
    """Over many draws the shift of a grey image has the covariance of the paper."""
    grey = np.full((2, 2, 3), 128, np.uint8)
    draws = np.stack([d[0] for d in draw(0, np.zeros(3000, int), np.arange(3000), 1)])
    shift = tf.function(lambda d: color.pca_noise(tf.constant(grey), color.Rng(d), 1.0)[0, 0])
    shifted = tf.map_fn(shift, tf.constant(draws), fn_output_signature=tf.uint8)
    shifts = shifted.numpy().astype(float) - 128
    vectors, values = np.array(color._PCA_VECTORS), np.array(color._PCA_VALUES) * 255
    expected = vectors @ np.diag(values**2) @ vectors.T
    np.testing.assert_allclose(np.cov(shifts.T), expected, rtol=0.12)
    np.testing.assert_allclose(shifts.mean(0), 0, atol=3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-3)


def test_rgb_repeats_grey(run_op, photo):
    ours = run_op('rgb', photo[..., :1])
    np.testing.assert_array_equal(ours, np.repeat(photo[..., :1], 3, -1))


@pytest.mark.parametrize('degrees', [-40, 10, 90])
def test_rotate_is_scikit_images(photo, degrees):
    ours = resampling.rotate(tf.constant(photo), Fixed((degrees + 90) / 180), 90)
    theirs = skimage.transform.rotate(photo, degrees, preserve_range=True, order=1)
    close(ours, np.floor(theirs + 0.5), largest=1, share=0.01)  # at the border


@pytest.mark.parametrize('factor', [0.5, 1.0, 1.7])
def test_zoom_is_scikit_images(photo, factor):
    ours = resampling.zoom(tf.constant(photo), Fixed((factor - 0.5) / 1.5), 0.5, 2.0)
    close(ours, affine(photo, np.diag([factor, factor])), largest=1, share=0.01)


@pytest.mark.parametrize('degrees', [-20, 0, 15])
def test_shear_is_scikit_images(photo, degrees):
    ours = resampling.shear(tf.constant(photo), Fixed((degrees + 20) / 40), 20)
    matrix = np.linalg.inv([[1, np.tan(np.deg2rad(degrees))], [0, 1]])
    close(ours, affine(photo, matrix), largest=1, share=0.01)


def affine(image, matrix, shift=(0, 0)):
    """Applies the forward map (x, y) → matrix · (x, y) + shift about the centre by scikit-image."""
    centre = np.array([image.shape[1] - 1, image.shape[0] - 1]) / 2
    whole = np.eye(3)
    whole[:2, :2] = matrix
    whole[:2, 2] = centre + shift - matrix @ centre
    inverse = np.linalg.inv(whole)
    theirs = skimage.transform.warp(image, inverse, order=1, preserve_range=True)
    return np.floor(theirs + 0.5)


def test_affine_composes_rotation_squeeze_and_shift(photo):
    turn, sx, sy, lean, dx, dy = 0.8, 0.3, 0.9, 0.7, 0.2, 0.6
    ours = resampling.affine(
        tf.constant(photo), Fixed(turn, sx, sy, lean, dx, dy), 20, 0.2, 0.3, 10
    )
    turn, sx, sy, lean, dx, dy = (2 * v - 1 for v in (turn, sx, sy, lean, dx, dy))
    angle = np.deg2rad(20 * turn)
    # Counter-clockwise on the screen, where y points down.
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    squeeze = np.array([[1 + 0.2 * sx, 0.3 * lean], [0, 1 + 0.2 * sy]])
    theirs = affine(photo, rotation @ squeeze, 10 * np.array([dx, dy]))
    close(ours, theirs, largest=1, share=0.01)


def test_affine_without_arguments_changes_nothing(run_op, photo):
    np.testing.assert_array_equal(run_op('affine', photo), photo)


def test_translate_shifts_by_whole_pixels(run_op, photo):
    seen = set()
    for i in range(60):
        ours = run_op('translate(1)', photo, id=i)
        places = [
            (y, x) for y in range(3) for x in range(3)
            if np.array_equal(ours, np.pad(photo, [(1, 1), (1, 1), (0, 0)])[y : y + 300, x : x + 451])
        ]  # fmt: skip
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 9


def test_blur_and_displacement_are_scipys(photo):
    noise = np.random.default_rng(0).uniform(-1, 1, (*photo.shape[:2], 2)).astype(np.float32)
    ours = resampling.gaussian_blur(tf.constant(noise), 4.0).numpy()
    theirs = ndimage.gaussian_filter(noise, (4, 4, 0), mode='constant', truncate=4)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    field = 34 * theirs
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    moved = [
        ndimage.map_coordinates(
            np.pad(photo[..., c].astype(float), 1),
            [y + field[..., 0] + 1, x + field[..., 1] + 1],
            order=1,
        )
        for c in range(3)
    ]
    close(resampling.displace(tf.constant(photo), field), np.floor(np.stack(moved, -1) + 0.5),
          largest=1, share=0.002)  # fmt: skip


def test_elastic_moves_as_far_as_the_paper_says(run_op, photo):
    np.testing.assert_array_equal(run_op('elastic(0, 4)', photo), photo)
    assert not np.array_equal(run_op('elastic(34, 4)', photo), photo)
    assert not np.array_equal(
        run_op('elastic(34, 4)', photo), run_op('elastic(34, 4)', photo, id=1)
    )


def test_cutout_blanks_a_square_about_any_pixel(run_op):
    image = np.full((12, 10, 3), 200, np.uint8)
    areas = []
    for i in range(80):
        blank = (run_op('cutout(4, 9)', image, id=i) == 9).all(-1)
        rows, columns = np.flatnonzero(blank.any(1)), np.flatnonzero(blank.any(0))
        assert blank.sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4
        areas.append(blank.sum())
    assert max(areas) == 16 and min(areas) < 16


def test_random_erasing_is_the_papers(run_op):
    image = np.zeros((100, 100, 3), np.uint8)
    erased = 0
    for i in range(60):
        changed = run_op('random_erasing', image, id=i).any(-1)
        if not changed.any():
            continue
        erased += 1
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert changed.mean() > 0.95 * height * width / 1e4
        assert 0.02 * 0.8 <= height * width / 1e4 <= 0.4
        assert 0.25 <= height / width <= 1 / 0.25
    assert 18 <= erased <= 42
