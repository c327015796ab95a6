"""Every kind of image is read as people would expect it; none that is broken is read at all."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vision.preprocess.decode import BadImage, read
from vision.preprocess.ops import decode as decode_lib

pytestmark = pytest.mark.smoke


@pytest.fixture
def decode(run_op):
    return lambda data, channels=3: run_op(f'decode({channels})', data)


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))


@pytest.mark.parametrize(
    'options',
    [
        {'quality': 90},
        {'quality': 75, 'progressive': True},
        {'quality': 95, 'subsampling': 0},
        {'quality': 80, 'subsampling': 2, 'optimize': True},
        {'quality': 85, 'icc_profile': b'profile' * 9000},
    ],
)
def test_jpeg_has_pillows_pixels(decode, photo, encode, options):
    data = encode(photo, **options)
    np.testing.assert_array_equal(decode(data), pillow(data))


def test_plain_jpeg_takes_the_fast_path(photo, encode):
    is_plain = tf.function(decode_lib.is_plain_jpeg)
    assert is_plain(tf.constant(encode(photo)))
    exif = Image.Exif()
    exif[0x010E] = 'a description; upright'
    assert is_plain(tf.constant(encode(photo, exif=exif)))
    exif[0x0112] = 6
    assert not is_plain(tf.constant(encode(photo, exif=exif)))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_exif_orientation_is_applied(decode, photo, encode, orientation, kind):
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = Image.fromarray(photo)
    stored = stored if undo is None else stored.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encode(stored, kind, exif=exif, quality=95))
    assert image.shape == photo.shape
    assert np.abs(image.astype(float) - photo).mean() < 4


def test_cmyk_jpeg_has_the_right_colours(decode, photo, encode):
    data = encode(Image.fromarray(photo).convert('CMYK'), quality=95)
    assert np.abs(decode(data).astype(float) - photo).mean() < 5


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'WEBP', 'GIF'])
def test_grey_is_repeated(decode, photo, encode, kind):
    grey = photo[..., 1]
    image = decode(encode(grey, kind))
    assert image.shape == photo.shape
    assert np.abs(image.astype(float) - grey[..., None]).mean() < 4


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF'])
def test_lossless_kinds_are_exact(decode, photo, encode, kind):
    np.testing.assert_array_equal(decode(encode(photo, kind)), photo)
    grey = decode(encode(photo, kind), channels=1)
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(photo).convert('L')))


def test_webp_and_gif_are_near(decode, photo, encode):
    np.testing.assert_array_equal(decode(encode(photo, 'WEBP', lossless=True)), photo)
    assert np.abs(decode(encode(photo, 'GIF')).astype(float) - photo).mean() < 8


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_16_bit_grey_is_scaled_and_not_clipped(decode, encode, kind):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = decode(encode(values, kind))
    assert image.shape == (64, 64, 3)
    np.testing.assert_allclose(image[..., 0], values / 257, atol=0.5001)


def test_16_bit_colour_is_scaled(decode):
    values = np.linspace(0, 65535, 8 * 8 * 3).reshape(8, 8, 3).astype('>u2')
    image = decode(png(8, 8, depth=16, colour=2, rows=values.tobytes()))
    np.testing.assert_allclose(image, values / 257, atol=1)


def test_alpha_is_laid_on_white(decode, encode):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, :, 3] = 255
    rgba[1, :, 3] = 51
    image = decode(encode(rgba, 'PNG'))
    np.testing.assert_array_equal(image[0, 0], [200, 0, 0])
    np.testing.assert_array_equal(image[1, 0], [244, 204, 204])
    np.testing.assert_array_equal(image[2, 0], [255, 255, 255])


def test_transparent_colour_of_a_palette_is_white(decode, encode):
    image = Image.new('P', (4, 4))
    image.putpalette([0, 0, 0, 10, 200, 30] + [0] * 756)
    image.putpixel((1, 1), 1)
    decoded = decode(encode(image, 'PNG', transparency=0))
    np.testing.assert_array_equal(decoded[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(decoded[1, 1], [10, 200, 30])


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_animations_give_their_first_frame(decode, encode, kind):
    frames = [Image.new('RGB', (16, 16), colour) for colour in ('#c80000', '#00c800', '#0000c8')]
    image = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    assert image.shape == (16, 16, 3)
    np.testing.assert_allclose(image[8, 8], [200, 0, 0], atol=2)


def png(width, height, depth=8, colour=2, rows=b''):
    """A PNG whose header says what the test wants."""

    def chunk(name, data):
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    stride = len(rows) // height if rows else 0
    lines = b''.join(
        b'\0' + rows[i * stride : (i + 1) * stride] for i in range(height if rows else 0)
    )
    body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + body


def jpeg_claiming(data, width, height):
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + struct.pack('>HH', height, width) + data[at + 4 :]


def test_absurd_sizes_are_refused_before_memory_is_spent(photo, encode, decode):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (png(40000, 40000), jpeg_claiming(encode(photo), 40000, 40000)):
        with pytest.raises(BadImage, match='claims 40000x40000 pixels; the limit is 200 million'):
            read(data)
        with pytest.raises(tf.errors.OpError):
            decode(data)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000  # kB; the claimed pixels would take 4,800,000


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP', 'GIF'])
@pytest.mark.parametrize('part', [0.1, 0.5, 0.9])
def test_truncated_files_are_errors(decode, photo, encode, kind, part):
    data = encode(photo, kind)
    data = data[: int(len(data) * part)]
    with pytest.raises(BadImage, match=r'truncated|damaged|not an image'):
        read(data)
    with pytest.raises(tf.errors.OpError):
        decode(data)


@pytest.mark.parametrize(
    ('data', 'why'),
    [(b'', 'empty file'), (b'path,label\n', 'not an image'), (b'\xff\xd8\xff\xd9', 'not an image')],
)
def test_what_is_no_image_says_so(decode, data, why):
    with pytest.raises(BadImage, match=why):
        read(data)
    with pytest.raises(tf.errors.OpError):
        decode(data)


def test_truncated_jpeg_is_named_so(photo, encode):
    with pytest.raises(BadImage, match=r'^truncated JPEG$'):
        read(encode(photo)[:5000])


@pytest.mark.parametrize('size', [(1, 60_000), (60_000, 1), (5, 505)])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_strips_are_refused_before_they_are_resized(decode, encode, size, kind):
    data = encode(np.zeros((*size, 3), np.uint8), kind)
    with pytest.raises(BadImage, match=f'a strip of {size[1]}x{size[0]} pixels'):
        read(data)
    with pytest.raises(tf.errors.OpError):
        decode(data)
    assert decode(encode(np.zeros((5, 500, 3), np.uint8), kind)).shape == (5, 500, 3)


@pytest.mark.parametrize('damage', ['flipped', 'zeros', 'cut out', 'end marker', 'noise'])
@pytest.mark.parametrize('place', [0.3, 0.8])
def test_a_jpeg_damaged_inside_is_refused_or_intact_before_the_damage(
    decode, photo, encode, damage, place
):
    data = bytearray(encode(photo, quality=90))
    start = data.index(b'\xff\xda') + 14
    at = start + int((len(data) - start) * place)
    if damage == 'flipped':
        data[at] ^= 0x55
    elif damage == 'zeros':
        data[at : at + 300] = bytes(300)
    elif damage == 'cut out':
        del data[at : at + 2000]
    elif damage == 'end marker':
        data[at : at + 2] = b'\xff\xd9'
    else:
        data[at:-2] = (
            np.random.default_rng(0).integers(0, 256, len(data) - at - 2, np.uint8).tobytes()
        )
    assert data[-2:] == b'\xff\xd9'
    whole = pillow(encode(photo, quality=90))
    try:
        image = decode(bytes(data))
    except tf.errors.OpError:
        return  # the pipeline asks `read` for the reason, and counts it
    assert image.shape == whole.shape
    intact = int(len(whole) * place * 0.5) // 16 * 16  # the data is not spread evenly
    np.testing.assert_array_equal(image[:intact], whole[:intact])


def test_bytes_after_the_end_do_no_harm(decode, photo, encode):
    data = encode(photo)
    np.testing.assert_array_equal(decode(data + b'\0' * 100), pillow(data))
