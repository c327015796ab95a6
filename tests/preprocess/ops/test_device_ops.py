"""Each device op against NumPy, Pillow or scikit-image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vision.core.errors import UserError
from vision.preprocess.ops import DEVICE, OPS, DeviceRng, resampling

KEY = jax.random.key(0)
PHOTO = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.float32)
sizes = st.integers(1, 40)


def run(name, image, *args, key=KEY, **kwargs):
    """Applies an op on the device, with the random numbers of a key if it needs any."""
    rng = [DeviceRng(key)] if OPS[name].draws() else []
    return OPS[name].form(DEVICE)(jnp.asarray(image), *rng, *args, **kwargs)


def draws(name, n=64, image=PHOTO, **kwargs):
    """Returns the op's results for n keys."""
    keys = jax.random.split(jax.random.key(1), n)
    # Use one program: without jit each operation would be compiled separately.
    return np.asarray(jax.jit(jax.vmap(lambda key: run(name, image, key=key, **kwargs)))(keys))


@pytest.mark.parametrize('size', [(32, 32), (10, 12), (20, 24), (7, 40), (1, 1)])
def test_resize_is_pillows_bilinear(size):
    got = np.asarray(run('resize', PHOTO, *size))
    bands = [
        np.asarray(Image.fromarray(PHOTO[..., c]).resize(size[::-1], Image.Resampling.BILINEAR))
        for c in range(3)
    ]
    np.testing.assert_allclose(got, np.stack(bands, -1), atol=1e-2)


def test_pad_and_central_crop_are_numpys():
    padded = np.asarray(run('pad', PHOTO, 2, value=7))
    np.testing.assert_array_equal(
        padded, np.pad(PHOTO, [(2, 2), (2, 2), (0, 0)], constant_values=7)
    )
    np.testing.assert_array_equal(run('central_crop', padded, 20, 24), PHOTO)


def test_random_crop_gives_every_window_and_no_other():
    got = draws('random_crop', 2000, PHOTO[:4, :4], height=4, width=4, padding=1)
    padded = np.pad(PHOTO[:4, :4], [(1, 1), (1, 1), (0, 0)])
    windows = [padded[y : y + 4, x : x + 4] for y in range(3) for x in range(3)]
    counts = [sum((g == w).all() for g in got) for w in windows]
    assert sum(counts) == 2000
    assert ((np.array(counts) - 2000 / 9) ** 2 / (2000 / 9)).sum() < 26.1  # chi², 8 df, p = .001


def test_translate_moves_all_pixels_alike():
    for moved in draws('translate', 20, pixels=2):
        padded = np.pad(PHOTO, [(2, 2), (2, 2), (0, 0)])
        assert any(
            (moved == padded[y : y + 20, x : x + 24]).all() for y in range(5) for x in range(5)
        )


def test_flip_lr_is_numpys_half_of_the_time():
    got = draws('flip_lr', 1000)
    flipped = (got == PHOTO[:, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(got[~flipped], np.broadcast_to(PHOTO, got[~flipped].shape))
    assert 440 < flipped.sum() < 560


def test_affine_of_nothing_is_the_image():
    for image in draws('affine', 4):
        np.testing.assert_allclose(image, PHOTO, atol=1e-3)


def test_affine_is_scikit_images_warp():
    """Recovers the drawn map from three points of a smooth image, for scikit-image."""
    from skimage.transform import AffineTransform, warp

    y, x = np.mgrid[:32, :32].astype(np.float32)
    image = np.stack([x, y, np.full_like(x, 1.0)], -1)  # coordinates as colours, and a mask
    photo = np.zeros((32, 32, 3), np.float32)
    photo[8:24, 8:24] = PHOTO[:16, :16]
    args = {'degrees': 20, 'scale': 0.1, 'shear': 0.1, 'shift': 1.5}
    affine = jax.jit(lambda image, key: run('affine', image, key=key, **args))
    for key in jax.random.split(jax.random.key(3), 5):
        where = np.asarray(affine(image, key))
        inside = where[12:20, 12:20]
        assert (inside[..., 2] > 0.999).all()
        # Fit the inverse map to the coordinates, and warp the photo by it.
        grid = np.stack([x, y, np.ones_like(x)], -1)[12:20, 12:20].reshape(-1, 3)
        matrix, *_ = np.linalg.lstsq(grid, inside[..., :2].reshape(-1, 2), rcond=None)
        expected = warp(
            photo, AffineTransform(np.vstack([matrix.T, [0, 0, 1]])), order=1, mode='constant'
        )
        np.testing.assert_allclose(affine(photo, key), expected, atol=0.5)


def test_affine_draws_stay_in_their_ranges():
    spot = np.zeros((41, 41, 1), np.float32)
    spot[20, 20] = 1  # the centre is shifted, but not rotated
    moved = draws('affine', 300, spot, degrees=15, scale=0.1, shear=0.1, shift=3.0)
    y, x = np.mgrid[:41, :41]
    weight = moved[..., 0].sum((1, 2))
    shift = np.stack([(moved[..., 0] * g).sum((1, 2)) / weight - 20 for g in (y, x)])
    assert np.abs(shift).max() <= 3.05
    assert np.abs(shift).max() > 2.5
    assert np.abs(shift.mean(1)).max() < 0.4


def test_elastic_moves_smoothly_and_on_average_not_at_all():
    y, x = np.mgrid[:40, :40].astype(np.float32)
    image = np.stack([y, x], -1)
    field = (draws('elastic', 200, image, alpha=20.0, sigma=4.0) - image)[:, 8:32, 8:32]
    assert 0.3 < field.std() < 3
    assert np.abs(np.diff(field, axis=1)).max() < 0.6 * np.abs(field).max()
    assert np.abs(field.mean((0, 1, 2))).max() < 0.2


def test_elastic_field_is_noise_under_scipys_gaussian():
    from scipy.ndimage import gaussian_filter1d

    noise = np.random.default_rng(0).uniform(-1, 1, 60)
    ours = resampling._blur_matrix(60, 3.0) @ noise
    theirs = gaussian_filter1d(noise, 3.0, truncate=4.0, mode='constant')
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_cutout_blanks_a_square_and_nothing_else():
    ones = np.ones((20, 24, 3), np.float32)
    for image in draws('cutout', 50, ones, size=6, value=0.5):
        blank = (image == 0.5).all(-1)
        rows, columns = blank.any(1), blank.any(0)
        assert blank.sum() == rows.sum() * columns.sum()
        assert 3 <= rows.sum() <= 6 and 3 <= columns.sum() <= 6
        np.testing.assert_array_equal(image[~blank], 1)


def test_rgb_repeats_grey():
    got = np.asarray(run('rgb', PHOTO[..., :1]))
    np.testing.assert_array_equal(got, np.repeat(PHOTO[..., :1], 3, -1))


@given(sizes, sizes, st.integers(1, 40), st.integers(1, 40))
def test_crops_that_do_not_fit_are_refused(h, w, height, width):
    def cut():  # only shapes matter, so nothing is compiled
        image = jax.ShapeDtypeStruct((h, w, 1), jnp.float32)
        return jax.eval_shape(lambda x: run('central_crop', x, height, width), image)

    if height > h or width > w:
        with pytest.raises(UserError, match='cannot crop'):
            cut()
    else:
        assert cut().shape == (height, width, 1)
