"""The transformations of copies: what each does to the pixels, and that a seed determines them."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from vision.core.errors import UserError
from vision.search import transformations
from vision.search.transformations import NAMES, SINGLE, copy_of

FIXED = (
    'flip', 'rotate 90°', 'rotate 180°', 'rotate 5°', 'rotate 20°', 'jpeg 30', 'jpeg 10',
    'scale 1/4', 'aspect × 1.5', 'blur 3', 'brightness × 0.5', 'brightness × 1.6', 'contrast × 0.5',
    'contrast × 1.6', 'grey', 'hue 60°',
)  # fmt: skip


@pytest.fixture(scope='module')
def photos():
    """Two photos of 96 × 128 pixels."""
    names = ('coffee', 'chelsea')
    return [np.array(Image.fromarray(getattr(data, n)()).resize((128, 96))) for n in names]


@pytest.fixture(scope='module')
def copies(photos):
    return {name: copy_of(photos[0], name, 1, photos[1]) for name in NAMES}


@pytest.fixture
def places():
    """An image whose pixels tell their row and column."""
    rows, columns = np.mgrid[:100, :160]
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


def test_a_seed_determines_a_copy_and_another_seed_makes_another(photos, copies):
    for name in reversed(NAMES):
        copy = copies[name]
        assert copy.dtype == np.uint8 and copy.ndim == 3 and copy.shape[2] == 3
        assert np.array_equal(copy, copy_of(photos[0], name, 1, photos[1])), name
        assert not np.array_equal(copy, photos[0])
        other = copy_of(photos[0], name, 2, photos[1])
        assert (name in FIXED) == np.array_equal(copy, other), name
    with pytest.raises(UserError, match='transformation'):
        copy_of(photos[0], 'flop', 1, photos[1])


def test_the_list_is_the_fixed_one():
    assert len(SINGLE) == 25 and len(NAMES) == 27 and len(set(NAMES)) == 27


@pytest.mark.parametrize('area', [0.75, 0.5, 0.3])
def test_a_crop_is_a_part_of_this_area_anywhere(places, area):
    corners = set()
    for seed in range(20):
        part = copy_of(places, f'crop {round(100 * area)} %', seed, places)
        assert part.shape[0] * part.shape[1] == pytest.approx(area * 16000, rel=0.02)
        assert part.shape[1] / part.shape[0] == pytest.approx(1.6, rel=0.03)
        top, left = (int(x) for x in part[0, 0, :2])
        whole = places[top : top + part.shape[0], left : left + part.shape[1]]
        assert np.array_equal(part, whole)
        corners.add((top, left))
    assert len(corners) > 15


def test_turns_and_reflections(places):
    for name, expected in (
        ('flip', places[:, ::-1]),
        ('rotate 90°', np.rot90(places)),
        ('rotate 180°', places[::-1, ::-1]),
    ):
        assert np.array_equal(copy_of(places, name, 0, places), expected), name
    # Small turns keep every pixel: the frame grows as the corners say.
    for degrees in (5, 20):
        turned = copy_of(places, f'rotate {degrees}°', 0, places)
        sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
        size = 100 * cosine + 160 * sine, 160 * cosine + 100 * sine
        np.testing.assert_allclose(turned.shape[:2], size, atol=2)
        assert (turned[0, 0] == 0).all()


def test_sizes_compression_and_blur(photos, copies):
    height, width = photos[0].shape[:2]
    assert copies['scale 1/4'].shape == (height // 4, width // 4, 3)
    assert copies['aspect × 1.5'].shape == (height, width * 1.5, 3)
    for quality in (30, 10):
        buffer = io.BytesIO()
        Image.fromarray(photos[0]).save(buffer, 'jpeg', quality=quality)
        assert np.array_equal(copies[f'jpeg {quality}'], np.asarray(Image.open(buffer)))
    # A blurred step has the standard deviation of the blur.
    step = np.zeros((40, 80, 3), np.uint8)
    step[:, 40:] = 255
    edge = np.diff(copy_of(step, 'blur 3', 0, step)[20, :, 0].astype(float)) / 255
    at = np.arange(len(edge)) - (edge * np.arange(len(edge))).sum()
    assert (edge * at**2).sum() ** 0.5 == pytest.approx(3, abs=0.15)


def test_values_and_colours(photos, copies):
    pixels = photos[0].astype(float)
    noise = copies['noise 25'] - pixels
    inside = (pixels > 100) & (pixels < 155)
    assert noise[inside].std() == pytest.approx(25, rel=0.05) and abs(noise[inside].mean()) < 1.5
    for factor in (0.5, 1.6):
        brighter = np.clip(pixels * factor, 0, 255)
        np.testing.assert_allclose(copies[f'brightness × {factor}'], brighter, atol=0.5)
        steeper = np.clip((pixels - pixels.mean()) * factor + pixels.mean(), 0, 255)
        np.testing.assert_allclose(copies[f'contrast × {factor}'], steeper, atol=0.501)
    luma = pixels @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(copies['grey'], np.repeat(luma[..., None], 3, axis=2), atol=0.6)
    for colour in ((200, 40, 40), (30, 180, 90)):
        h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
        expected = np.multiply(255, colorsys.hsv_to_rgb((h + 60 / 360) % 1, s, v))
        plain = np.full((4, 4, 3), colour, np.uint8)
        np.testing.assert_allclose(copy_of(plain, 'hue 60°', 0, plain)[0, 0], expected, atol=4)


def test_what_lies_around_and_over_a_copy(photos, copies):
    photo, other = photos
    framed = copies['border 20 %']
    assert framed.shape == (96 + 2 * 19, 128 + 2 * 26, 3)
    assert np.array_equal(framed[19:-19, 26:-26], photo)
    assert (framed[:19] == framed[0, 0]).all() and (framed[:, -26:] == framed[0, 0]).all()
    changed = {
        name: (copies[name] != photo).any(axis=2)
        for name in ('text 20 %', 'stickers 10 %', 'stickers 30 %')
    }
    rows = np.flatnonzero(changed['text 20 %'].any(axis=1))
    assert rows[-1] - rows[0] + 1 == len(rows) == 19
    assert len(np.unique(copies['text 20 %'][rows].reshape(-1, 3), axis=0)) > 2  # with letters
    for share in (0.1, 0.3):
        assert changed[f'stickers {share:.0%}'.replace('%', ' %')].mean() == pytest.approx(
            share, abs=0.02
        )
    # A screenshot shows the picture at half its size, and the other photo around it.
    shot = copies['screenshot']
    around = np.asarray(Image.fromarray(other).resize((128, 96), Image.Resampling.BICUBIC))
    half = np.asarray(Image.fromarray(photo).resize((64, 48), Image.Resampling.BICUBIC))
    assert shot.shape == photo.shape
    inside = (shot != around).any(axis=2)
    top, left = inside.any(axis=1).argmax(), inside.any(axis=0).argmax()
    assert np.array_equal(shot[top : top + 48, left : left + 64], half)
    inside[top : top + 48, left : left + 64] = False
    assert not inside.any()


def test_a_chain_applies_as_many_different_transformations(photos, monkeypatch):
    seen = []
    for name, function in SINGLE.items():

        def noted(image, rng, name=name, function=function, **extra):
            seen.append(name)
            return function(image, rng, **extra)

        monkeypatch.setitem(transformations.SINGLE, name, noted)
    orders = set()
    for name, length in (('two chained', 2), ('three chained', 3)):
        for seed in range(8):
            seen.clear()
            copy_of(photos[0], name, seed, photos[1])
            assert len(seen) == len(set(seen)) == length
            orders.add(tuple(seen))
    assert len(orders) > 12


@pytest.mark.parametrize('size', [(1, 1), (8, 8), (3, 200)])
def test_images_of_any_size_have_copies(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for name in NAMES:
        for seed in range(3):
            copy = copy_of(image, name, seed, image)
            assert copy.dtype == np.uint8 and copy.shape[2] == 3 and copy.size
