"""Resize, crop, flip and view ops against NumPy, Pillow and the papers' definitions."""

import hashlib
import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tiers import examples
from vision.preprocess import ops as ops_lib
from vision.preprocess.ops import PER_OP, Rng, crops
from vision.preprocess.ops.on_host import apply, draw

PILLOW = {
    'bilinear': Image.Resampling.BILINEAR,
    'area': Image.Resampling.BOX,
}


def pixels(rng_seed, height, width):
    return np.random.default_rng(rng_seed).integers(0, 256, (height, width, 3), np.uint8)


def numbered(height, width):
    """An image whose pixels hold their position: the channels are y, x and 1."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.ones_like(y)], -1).astype(np.uint8)


@pytest.mark.parametrize('size', [(100, 150), (64, 64), (400, 500), (300, 225)])
def test_bilinear_is_pillows(run_op, photo, size):
    ours = run_op(f'resize{size}', photo)
    theirs = np.asarray(Image.fromarray(photo).resize(size[::-1], PILLOW['bilinear']))
    # Pillow rounds between its two passes.
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize('size', [(150, 451), (100, 41), (60, 11)])
def test_area_averages_blocks(run_op, photo, size):
    ours = run_op(f'resize({size[0]}, {size[1]}, method="area")', photo)
    theirs = np.asarray(Image.fromarray(photo).resize(size[::-1], PILLOW['area']))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def keys_bicubic(image, size, a=-0.5):
    """Keys' cubic convolution as published, separable, and widened when shrinking (antialias)."""

    def kernel(x):
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    def weights(old, new):
        scale = max(old / new, 1)
        centre = (np.arange(new) + 0.5) * old / new - 0.5
        w = kernel((np.arange(old)[None] - centre[:, None]) / scale)
        return w / w.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0], size[0]), weights(image.shape[1], size[1])
    values = np.einsum('ijc,kj->ikc', np.tensordot(rows, image.astype(float), 1), columns)
    return np.clip(np.floor(values + 0.5), 0, 255)


@pytest.mark.parametrize('size', [(100, 150), (350, 500)])
def test_bicubic_is_keys(run_op, photo, size):
    ours = run_op(f'resize{(*size, "bicubic")}', photo)
    difference = np.abs(ours - keys_bicubic(photo, size))
    # Implementations differ where the kernel extends beyond the image.
    assert difference[5:-5, 5:-5].max() <= 1


def test_without_antialias_single_pixels_are_taken(run_op):
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    assert run_op('resize(3, antialias=False)', image)[1, 1, 0] == 255
    assert 0 < run_op('resize(3)', image)[1, 1, 0] < 60


@pytest.mark.parametrize(
    ('height', 'width', 'expected'),
    [(300, 451, (64, 96)), (451, 300, (96, 64)), (50, 50, (64, 64))],
)
def test_resize_small_keeps_the_aspect(run_op, height, width, expected):
    image = pixels(0, height, width)
    ours = run_op('resize_small(64)', image)
    assert ours.shape[:2] == expected
    np.testing.assert_array_equal(ours, run_op(f'resize{expected}', image))


@given(height=st.integers(8, 40), width=st.integers(8, 40), size=st.integers(1, 8))
@examples(10)
def test_central_crop_is_central(height, width, size):
    crop = crops.central_crop(tf.constant(numbered(height, width)), size).numpy()
    top, left = crop[0, 0, :2]
    assert crop.shape == (size, size, 3)
    assert 0 <= (height - size - top) - top <= 1
    assert 0 <= (width - size - left) - left <= 1


def test_random_crop_reaches_every_place_equally(run_op):
    image = numbered(6, 7)
    ops = ops_lib.parse('random_crop(4, 5, padding=1)')
    crop = tf.function(lambda d: apply(ops, tf.constant(image), d))
    draws = draw(0, np.zeros(2000, int), np.arange(2000), 1)
    padded = np.pad(image, [(1, 1), (1, 1), (0, 0)])
    counts = np.zeros((5, 5), int)
    for row in draws:
        out = crop(row).numpy()
        places = [(y, x) for y in range(5) for x in range(5)
                  if np.array_equal(out, padded[y : y + 4, x : x + 5])]  # fmt: skip
        assert len(places) == 1
        counts[places[0]] += 1
    assert (np.abs(counts - 80) < 4.5 * np.sqrt(80)).all()


def test_scale_jitter_covers_its_range(run_op):
    image = numbered(20, 30)
    short = {min(run_op('scale_jitter(10, 14)', image, id=i).shape[:2]) for i in range(60)}
    assert short == {10, 11, 12, 13, 14}


def test_flips(run_op, photo):
    seen = [run_op('flip_lr', photo, id=i) for i in range(40)]
    flipped = [np.array_equal(image, photo[:, ::-1]) for image in seen]
    assert all(f or np.array_equal(image, photo) for f, image in zip(flipped, seen, strict=True))
    assert 10 <= sum(flipped) <= 30
    assert any(np.array_equal(run_op('flip_ud', photo, id=i), photo[::-1]) for i in range(10))


def test_pad(run_op):
    image = pixels(0, 4, 5)
    expected = np.pad(image, [(2, 2), (2, 2), (0, 0)], constant_values=7)
    np.testing.assert_array_equal(run_op('pad(2, 7)', image), expected)


@given(height=st.integers(2, 3000), width=st.integers(2, 3000), id=st.integers(0, 10**9))
@examples(30)
def test_random_box_lies_inside_with_area_and_aspect_in_range(height, width, id):
    draws = draw(0, np.zeros(1, int), np.array([id]), 1)[0, 0]
    top, left, h, w = crops.random_box(height, width, Rng(draws)).numpy()
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0
    # The sides are rounded, so they are within half a pixel of the exact value.
    is_fallback = h == height or w == width
    assert (h + 0.5) * (w + 0.5) >= 0.08 * height * width or is_fallback
    assert (
        (w + 0.5) / max(h - 0.5, 0.5) >= 3 / 4 and (w - 0.5) / (h + 0.5) <= 4 / 3
    ) or is_fallback


def test_random_box_follows_the_published_distribution():
    """In a large square image the area, 8 … 100 %, and the log aspect ratio are uniform."""
    box = tf.function(lambda d: crops.random_box(4000, 4000, Rng(d), (0.08, 0.5)))
    boxes = np.array([box(d[0]).numpy() for d in draw(0, np.zeros(1500, int), np.arange(1500), 1)])
    areas = boxes[:, 2] * boxes[:, 3] / 16e6
    aspects = np.log(boxes[:, 3] / boxes[:, 2])
    for values, low, high in ((areas, 0.08, 0.5), (aspects, np.log(3 / 4), np.log(4 / 3))):
        uniform = np.sort((values - low) / (high - low))
        distance = np.abs(uniform - (np.arange(1500) + 0.5) / 1500).max()
        assert distance < 1.63 / np.sqrt(1500)  # Kolmogorov-Smirnov test at 1 %
    positions = np.sort(boxes[:, 0] / (4000 - boxes[:, 2]))
    assert np.abs(positions - (np.arange(1500) + 0.5) / 1500).max() < 1.63 / np.sqrt(1500)


def test_random_resized_crop_is_the_box_resized(run_op, photo):
    for id in range(5):
        draws = draw(0, np.zeros(1, int), np.array([id]), 1)[0, 0]
        top, left, h, w = crops.random_box(*photo.shape[:2], Rng(draws)).numpy()
        crop = photo[top : top + h, left : left + w]
        expected = run_op('resize(64, antialias=False)', crop)
        np.testing.assert_array_equal(run_op('random_resized_crop(64)', photo, id=id), expected)


def test_decoding_a_crop_is_cropping_the_decoded(run_op, photo, encode):
    """Differences come only from the fast DCT, simple chroma upsampling and scaled decoding."""
    data = encode(photo, quality=95, subsampling=0)
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    for size in (32, 200):
        for id in range(8):
            apart = run_op(f'pad(0)|random_resized_crop({size})', decoded, id=id)
            fused = run_op(f'decode|random_resized_crop({size})', data, id=id)
            error = np.abs(fused.astype(int) - apart).mean()
            # Decoding at reduced scale averages pixels; at full scale they are sampled.
            assert error < (12 if size == 32 else 2)


@pytest.mark.parametrize('scale', [2, 4, 8])
def test_reduced_scale_keeps_the_place(run_op, encode, scale):
    """A smooth image is the same at every scale of decoding."""
    y, x = np.mgrid[:800, :800] / 800
    image = (np.stack([y, x, (x + y) / 2], -1) * 255).astype(np.uint8)
    data = encode(image, quality=95, subsampling=0)
    size = 60 if scale == 8 else 280 // scale
    for id in range(6):
        apart = run_op(f'pad(0)|random_resized_crop({size}, area=(0.7, 1.0))', image, id=id)
        fused = run_op(f'decode|random_resized_crop({size}, area=(0.7, 1.0))', data, id=id)
        assert np.abs(fused.astype(int) - apart).max() <= 6
        assert np.abs(fused.astype(int).mean() - apart.mean()) < 1.5


def test_a_tiny_image_gives_a_crop_too(run_op):
    assert run_op('random_resized_crop(8)', pixels(0, 1, 1)).shape == (8, 8, 3)
    assert run_op('random_resized_crop(8)', pixels(0, 1, 500)).shape == (8, 8, 3)


def test_ten_crop_is_the_papers(run_op, photo):
    crops = run_op('ten_crop(100)', photo)
    h, w = photo.shape[:2]
    y, x = (h - 100) // 2, (w - 100) // 2
    corners = [(0, 0), (0, w - 100), (h - 100, 0), (h - 100, w - 100), (y, x)]
    for i, (top, left) in enumerate(corners):
        crop = photo[top : top + 100, left : left + 100]
        np.testing.assert_array_equal(crops[i], crop)
        np.testing.assert_array_equal(crops[i + 5], crop[:, ::-1])


def test_multi_scale_and_inception_crops(run_op, photo):
    crops = run_op('multi_scale_crops(64, (64, 96))', photo)
    assert crops.shape == (20, 64, 64, 3)
    np.testing.assert_array_equal(crops[10:], run_op('resize_small(96)|ten_crop(64)', photo))
    crops = run_op('inception_crops(224)', photo)
    assert crops.shape == (144, 224, 224, 3)
    resized = run_op('resize_small(256)', photo)
    np.testing.assert_array_equal(crops[0], resized[:224, :224])
    right = resized[:, -256:]
    np.testing.assert_array_equal(crops[24:29], run_op('ten_crop(224)', right)[:5])
    np.testing.assert_array_equal(crops[34], run_op('resize(224)', right))
    np.testing.assert_array_equal(crops[35], crops[34][:, ::-1])


def test_views_go_through_the_pipeline(jpegs):
    from vision.preprocess.pipeline import eval_batches

    batch = next(eval_batches(jpegs, 'decode|resize_small(40)|ten_crop(32)', batch_size=4))
    assert batch['image'].shape == (4, 10, 32, 32, 3)


def test_random_numbers_are_the_same_on_every_machine():
    """Golden values of order, crop boxes and choices: a change would change all experiments."""
    draws = draw(7, np.array([0, 0, 3]), np.array([0, 5, 123456]), 4)
    assert draws.shape == (3, 4, PER_OP) and draws.min() >= 0 and draws.max() < 1
    assert hashlib.sha256(draws.tobytes()).hexdigest()[:16] == GOLDEN_DRAWS
    boxes = [
        crops.random_box(375 + 7 * i, 500 - 11 * i, Rng(row[i % 4])).numpy().tolist()
        for i, row in enumerate(draw(1, np.arange(20), np.arange(20) * 997, 4))
    ]
    choices = [Rng(row[0]).below(14).numpy().item() for row in draws]
    text = repr((boxes, choices)).encode()
    assert hashlib.sha256(text).hexdigest()[:16] == GOLDEN_BOXES


GOLDEN_DRAWS = 'cc87edc0a1fdc671'
GOLDEN_BOXES = '3eca3e353f85e7f4'


def test_draws_depend_on_each_key():
    one = draw(1, np.array([1]), np.array([1]), 2)
    for other in (draw(2, np.array([1]), np.array([1]), 2), draw(1, np.array([2]), np.array([1]), 2),
                  draw(1, np.array([1]), np.array([2]), 2)):  # fmt: skip
        assert not np.isin(one, other).any()
    assert not np.isin(one[0, 0], one[0, 1]).any()
    np.testing.assert_array_equal(one, draw(1, np.array([1]), np.array([1]), 3)[:, :2])


def test_every_op_says_what_it_does():
    for name, entry in ops_lib.OPS.items():
        documented = entry.form(ops_lib.HOST).__doc__
        assert documented, name
        assert 'uint8 [' in documented, name


@given(
    height=st.integers(20, 70),
    width=st.integers(20, 70),
    resize=st.sampled_from(
        ['resize_small(24)', "resize_small(30, 'bicubic')", 'scale_jitter(24, 40)']
    ),
    crop=st.sampled_from(['central_crop(24)', 'central_crop(7, 20)', 'random_crop(21)']),
    example=st.integers(0, 1000),
)
@examples(20)
def test_a_crop_after_a_resize_is_what_the_two_give_one_after_the_other(
    height, width, resize, crop, example
):
    image = tf.constant(pixels(example, height, width))
    ops = ops_lib.parse(f'{resize}|{crop}')
    draws = draw(0, np.zeros(1, int), np.asarray([example]), 2)[0]
    together = apply(ops, image, draws).numpy().astype(int)
    for op, numbers in zip(ops, draws, strict=True):
        image = apply((op,), image, numbers[None])
    difference = np.abs(together - image.numpy())
    assert difference.max() <= 1  # halves may be rounded the other way
    assert (difference > 0).mean() < 0.02  # largest if the scale is a simple fraction


@pytest.mark.parametrize(
    'ops', ['resize_small(20)|central_crop(20, 41)', 'scale_jitter(9, 10)|random_crop(11)']
)
def test_a_crop_after_a_resize_must_fit(run_op, ops):
    with pytest.raises(Exception, match='the image is smaller'):
        run_op(ops, pixels(0, 30, 60))
