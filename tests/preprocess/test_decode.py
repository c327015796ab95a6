"""Decoding: every kind of image is read as people expect, and damaged images are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageCms

from tests.preprocess import icc
from vision.preprocess.decode import BadImage, pixels, read
from vision.preprocess.ops import decode as decode_lib


@pytest.fixture
def decode(run_op):
    return lambda data, channels=3: run_op(f'decode({channels})', data)


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))


@pytest.mark.smoke
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


def png(width, height, depth=8, colour=2, rows=b'', extra=()):
    """Makes a PNG with a given header."""

    def chunk(name, data):
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    stride = len(rows) // height if rows else 0
    lines = b''.join(
        b'\0' + rows[i * stride : (i + 1) * stride] for i in range(height if rows else 0)
    )
    between = b''.join(chunk(name, data) for name, data in extra)
    body = chunk(b'IHDR', header) + between + chunk(b'IDAT', zlib.compress(lines))
    body += chunk(b'IEND', b'')
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
    [
        (b'', 'empty file'),
        (b'path,label\n', 'not an image'),
        (b'\xff\xd8\xff\xd9', 'not an image'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'run git lfs pull'),
        # Without the plug-in, the reason names it.
        (b'\0\0\0\x18ftypheic' + b'\0' * 99, '.heic needs the package pillow-heif|image'),
        # Pillow would run Ghostscript.
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', 'not an image'),
    ],
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
    # Damage the scan data, but keep the end marker.
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
    # The image is refused, or intact before the damage.
    whole = pillow(encode(photo, quality=90))
    try:
        image = decode(bytes(data))
    except tf.errors.OpError:
        return  # the pipeline asks `read` for the reason, and counts it
    assert image.shape == whole.shape
    intact = int(len(whole) * place * 0.5) // 16 * 16  # the data are not spread evenly
    np.testing.assert_array_equal(image[:intact], whole[:intact])


def test_bytes_after_the_end_do_no_harm(decode, photo, encode):
    data = encode(photo)
    np.testing.assert_array_equal(decode(data + b'\0' * 100), pillow(data))


def test_what_the_first_frame_of_a_gif_leaves_out_is_white(encode):
    data = encode(np.zeros((2, 2, 3), np.uint8), 'GIF')
    image = read(data[:6] + struct.pack('<2H', 4, 3) + data[10:])
    np.testing.assert_array_equal(image[..., 0], [[0, 0, 255, 255]] * 2 + [[255] * 4])


def tiff(values, bits, kind=1, photometric=1, order='<'):
    """Makes a TIFF of one grey row with given tags."""
    data = values if isinstance(values, bytes) else values.tobytes()
    width = len(data) * 8 // bits
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1),
            (278, 1), (279, len(data)), (339, kind)]  # fmt: skip
    head = struct.pack(order + '2sHI', b'II' if order == '<' else b'MM', 42, 8 + len(data))
    rows = b''.join(struct.pack(order + 'HHIHH', tag, 3, 1, value, 0) for tag, value in tags)
    return head + data + struct.pack(order + 'H', len(tags)) + rows + bytes(4)


TWELVE = bytes.fromhex('000 400 800 fff'.replace(' ', ''))
SIXTEEN = np.array([0, 0x4000, 0x8000, 0xFFFF])


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        (tiff(TWELVE, 12), [0, 64, 128, 255]),
        (tiff(SIXTEEN.astype('<u2'), 16), [0, 64, 128, 255]),
        (tiff(SIXTEEN.astype('>u2'), 16, order='>'), [0, 64, 128, 255]),
        (tiff(SIXTEEN.astype('<u2'), 16, photometric=0), [255, 191, 127, 0]),
        (tiff(np.array([-7, 0, 0x4000, 0x7FFF], '<i2'), 16, kind=2), [0, 0, 128, 255]),
        (tiff(np.array([-7, 0, 64, 127], 'i1'), 8, kind=2), [0, 0, 129, 255]),
        (tiff(SIXTEEN.astype('<u4') * 65537, 32), [0, 64, 128, 255]),
        (tiff(np.array([0, 2**29, 2**30, 2**31 - 1], '<i4'), 32, kind=2), [0, 64, 128, 255]),
        (tiff(SIXTEEN.astype('<u4'), 32), [0, 64, 128, 255]),
        (tiff(np.array([0, 64, 128, 255], '<u4'), 32), [0, 64, 128, 255]),
        (tiff(np.array([0, 16384, 32768, 65535], '<f4'), 32, kind=3), [0, 64, 128, 255]),
        (tiff(np.array([0, 0.25, 0.5, 1], '<f4'), 32, kind=3), [0, 64, 128, 255]),
        (tiff(np.array([0, 0.25, 0.5, 1], '<f4'), 32, kind=3, photometric=0), [255, 191, 128, 0]),
        (b'P5 4 1 4095\n' + np.array([0, 1024, 2048, 4095], '>u2').tobytes(), [0, 64, 128, 255]),
        (b'P5 4 1 15\n' + bytes([0, 4, 8, 15]), [0, 68, 136, 255]),
        (png(4, 1, 16, 0, SIXTEEN.astype('>u2').tobytes()), [0, 64, 128, 255]),
        (png(4, 1, 2, 0, bytes([0b00011011])), [0, 85, 170, 255]),
        (png(3, 1, 8, 0, bytes([0, 64, 255]), [(b'gAMA', struct.pack('>I', 100_000))]), [0, 136, 255]),
        (png(3, 1, 8, 0, bytes([0, 64, 255]), [(b'gAMA', struct.pack('>I', 45_455))]), [0, 64, 255]),
    ],
)  # fmt: skip
def test_the_files_own_tags_say_what_its_values_mean(decode, data, expected):
    np.testing.assert_array_equal(read(data)[0, :, 0], expected)
    np.testing.assert_array_equal(decode(data)[0, :, 2], expected)
    np.testing.assert_array_equal(read(data, channels=1)[0, :, 0], expected)


def test_tiffs_that_pillow_reads_as_other_pixels_are_refused(encode, photo):
    data = encode(photo, 'TIFF')
    for tag, old, new in ((284, 1, 2), (262, 2, 6)):
        at = data.index(struct.pack('<HHIH', tag, 3, 1, old)) + 8
        other = data[:at] + bytes([new]) + data[at + 1 :]
        if tag == 284:
            bits = struct.unpack_from('<I', data, data.index(struct.pack('<HHI', 258, 3, 3)) + 8)[0]
            other = other[:bits] + struct.pack('<3H', 16, 16, 16) + other[bits + 6 :]
        with pytest.raises(BadImage, match='which is not supported'):
            read(other)
    with pytest.raises(BadImage, match='unsupported TIFF'):
        read(tiff(bytes(8), 64, kind=3))


def test_values_that_are_not_finite_are_no_image():
    for value in (np.nan, np.inf):
        with pytest.raises(BadImage, match='not finite'):
            read(tiff(np.array([0, value], '<f4'), 32, kind=3))


@pytest.mark.parametrize(
    ('depth', 'colour', 'rows', 'transparent', 'expected'),
    [
        (16, 0, struct.pack('>4H', 0, 1000, 40000, 65535), (0,), [255, 4, 156, 255]),
        (16, 0, struct.pack('>2H', 40000, 40001), (40000,), [255, 156]),
        (16, 2, struct.pack('>6H', 0, 0, 0, 0, 0, 200), (0, 0, 0), [[255] * 3, [0] * 3]),
        (16, 2, struct.pack('>6H', 4660, 5, 6, 4660, 5, 7), (4660, 5, 6), [[255] * 3, [18, 0, 0]]),
        (8, 0, bytes([7, 9]), (7,), [255, 9]),
        (8, 2, bytes([1, 2, 3, 1, 2, 4]), (1, 2, 3), [[255] * 3, [1, 2, 4]]),
        (4, 0, bytes([0x71]), (7,), [255, 17]),
        (2, 0, bytes([0b00011011]), (2,), [0, 85, 255, 255]),
        (1, 0, bytes([0b01000000]), (0,), [255] * 8),
    ],
)
def test_what_a_png_calls_transparent_is_white(depth, colour, rows, transparent, expected):
    width = len(rows) * 8 // depth // (3 if colour == 2 else 1)
    extra = [(b'tRNS', struct.pack(f'>{len(transparent)}H', *transparent))]
    image = read(png(width, 1, depth, colour, rows, extra))[0]
    np.testing.assert_array_equal(image if colour == 2 else image[:, 0], expected)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF', 'RGBA', 'P', 'MPO'])
@pytest.mark.parametrize('space', [icc.ADOBE_RGB, icc.DISPLAY_P3], ids=['adobe', 'p3'])
def test_colours_of_a_profile_become_srgb(decode, encode, space, kind):
    profile = icc.profile(*space)
    colours = np.array([[200, 100, 50], [30, 160, 60], [90, 90, 90], [0, 0, 0]], np.uint8)
    image = Image.fromarray(np.kron(colours[None], np.ones((16, 16, 1), np.uint8)))
    srgb = ImageCms.createProfile('sRGB')
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    expected = np.asarray(ImageCms.profileToProfile(image, source, srgb)).astype(int)
    assert np.abs(expected - np.asarray(image)).max() > 15
    stored = {'RGBA': image.convert('RGBA'), 'P': image.quantize(4)}.get(kind, image)
    name = 'PNG' if kind in ('RGBA', 'P') else kind
    options = {'PNG': {}, 'JPEG': {'subsampling': 0}, 'WEBP': {'lossless': True}}.get(name, {})
    options = options if name in ('PNG', 'TIFF') else options | {'quality': 100}
    data = encode(stored, name, icc_profile=profile, **options)
    inside = np.s_[:, 8::16]  # the inside of each square: some formats blur the edges
    np.testing.assert_allclose(decode(data).astype(int)[inside], expected[inside], atol=4)
    np.testing.assert_array_equal(decode(data), read(data))


# To linear sRGB, as CSS Color 4 and BT.2087 give them, and from linear values to sRGB's.
P3 = [[1.22494, -0.22494, 0], [-0.042057, 1.042057, 0], [-0.019638, -0.078636, 1.098274]]
BT2020 = [
    [1.660491, -0.587641, -0.07285],
    [-0.12455, 1.1329, -0.008349],
    [-0.018151, -0.100579, 1.11873],
]
ADOBE = [[1.398284, -0.398284, 0], [0, 1, 0], [0, -0.042938, 1.042938]]
COLOURS = np.array(
    [[200, 100, 50], [30, 160, 60], [90, 90, 90], [0, 0, 0], [255, 255, 255]], np.uint8
)


def in_srgb(matrix, gamma=None):
    """COLOURS of another space in sRGB, of a gamma or sRGB's own curve."""
    x = COLOURS / 255
    linear = (
        np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        if gamma is None
        else x**gamma
    )
    x = np.clip(linear @ np.transpose(matrix), 0, 1)
    return 255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def chrm(*xy):
    return b'cHRM', struct.pack('>8I', *(round(100_000 * v) for v in (0.3127, 0.329, *xy)))


GAMMA = (b'gAMA', struct.pack('>I', 45_455))
ADOBE_XY = chrm(0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


@pytest.mark.parametrize(
    ('chunks', 'expected'),
    [
        ([(b'cICP', bytes([12, 13, 0, 1]))], in_srgb(P3)),
        ([(b'cICP', bytes([9, 13, 0, 1]))], in_srgb(BT2020)),
        ([(b'cICP', bytes([9, 14, 0, 1]))], in_srgb(BT2020, 2.4)),  # BT.1886
        ([(b'cICP', bytes([1, 8, 0, 1]))], in_srgb(np.eye(3), 1)),
        ([(b'cICP', bytes([12, 13, 0, 1])), (b'sRGB', b'\0'), GAMMA], in_srgb(P3)),
        ([(b'cICP', bytes([9, 16, 0, 1]))], COLOURS),  # HDR stays as it is
        ([(b'cICP', bytes([1, 13, 0, 1]))], COLOURS),
        ([ADOBE_XY, GAMMA], in_srgb(ADOBE, 2.2)),
        ([ADOBE_XY], in_srgb(ADOBE)),
        ([ADOBE_XY, GAMMA, (b'sRGB', b'\0')], COLOURS),
        ([chrm(0.64, 0.33, 0.3, 0.6, 0.15, 0.06), GAMMA], COLOURS),
        ([chrm(0.3, 0.3, 0.3, 0.3, 0.3, 0.3)], COLOURS),
        ([(b'cHRM', bytes(32))], COLOURS),
        ([(b'cHRM', b'\xff' * 32)], COLOURS),
        ([(b'cHRM', bytes(8))], COLOURS),
    ],
)
def test_code_points_and_chromaticities_of_a_png_count(decode, chunks, expected):
    data = png(len(COLOURS), 1, 8, 2, COLOURS.tobytes(), chunks)
    np.testing.assert_allclose(read(data)[0], expected, atol=0 if expected is COLOURS else 1.6)
    np.testing.assert_array_equal(decode(data), read(data))
    np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(data))), read(data))


def test_code_points_of_an_avif_count_where_it_has_no_profile(encode):
    stored = Image.fromarray(np.kron(COLOURS[None], np.ones((16, 16, 1), np.uint8)))
    plain = encode(stored, 'AVIF', quality=100, subsampling='4:4:4')
    at = plain.index(b'colrnclx') + 8
    data = plain[:at] + struct.pack('>HH', 12, 13) + plain[at + 4 :]
    np.testing.assert_allclose(read(data)[0, 8::16], in_srgb(P3), atol=4)
    np.testing.assert_allclose(read(plain)[0, 8::16], COLOURS, atol=3)


def test_profiles_that_change_nothing_leave_the_pixels_and_the_fast_path(photo, encode):
    is_plain = tf.function(decode_lib.is_plain_jpeg)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for profile in (srgb, b'damaged' * 99, icc.profile(None)):  # the last one is for grey images
        data = encode(photo, icc_profile=profile)
        assert is_plain(tf.constant(data))
        np.testing.assert_array_equal(read(data), pillow(data))
    assert is_plain(tf.constant(encode(photo[..., 0], icc_profile=icc.profile(*icc.ADOBE_RGB))))
    for grey, profile in ((False, icc.profile(*icc.ADOBE_RGB)), (True, icc.profile(None, 1.0))):
        assert not is_plain(
            tf.constant(encode(photo[..., 0] if grey else photo, icc_profile=profile))
        )


@pytest.mark.parametrize('mode', ['L', 'LA', '16'])
def test_grey_of_a_linear_profile_becomes_srgb(encode, mode):
    values = np.array([[0, 64, 255]], np.uint8)
    image = Image.fromarray(values.astype(np.uint16) * 257 if mode == '16' else values)
    data = encode(
        image if mode == '16' else image.convert(mode), 'PNG', icc_profile=icc.profile(None, 1.0)
    )
    for channels in (1, 3):
        np.testing.assert_array_equal(read(data, channels)[0, :, 0], [0, 137, 255])


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_inks_of_a_profile_become_srgb(decode, encode, kind):
    inks = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255]])
    stored = Image.fromarray(
        np.repeat(np.repeat(inks[None], 16, 1), 16, 0).astype(np.uint8), 'CMYK'
    )
    profile, srgb = icc.inks(), ImageCms.createProfile('sRGB')
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    expected = ImageCms.profileToProfile(stored, opened, srgb, outputMode='RGB')
    assert np.abs(np.asarray(expected).astype(int) - np.asarray(stored.convert('RGB'))).max() > 50
    options = {'quality': 100, 'subsampling': 0} if kind == 'JPEG' else {}
    data = encode(stored, kind, icc_profile=profile, **options)
    np.testing.assert_allclose(decode(data)[:, 8::16], np.asarray(expected)[:, 8::16], atol=3)
    np.testing.assert_array_equal(decode(data), read(data))


@pytest.mark.parametrize('gamma', [0, 1, 4_000_000_000])
def test_a_gamma_or_profile_that_makes_no_sense_is_left_out(encode, gamma):
    data = png(2, 1, 8, 0, bytes([64, 200]), [(b'gAMA', struct.pack('>I', gamma))])
    np.testing.assert_array_equal(read(data)[0, :, 0], [64, 200])
    bits = Image.fromarray(np.eye(4) > 0)
    for profile in (icc.profile(None, 1.0), icc.profile(*icc.ADOBE_RGB)):
        data = encode(bits, 'PNG', icc_profile=profile)
        np.testing.assert_array_equal(read(data)[..., 1], np.eye(4) * 255)


def test_lab_has_the_right_colours(photo, encode):
    lab = ImageCms.profileToProfile(
        Image.fromarray(photo), ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB'
    )  # fmt: skip
    assert np.abs(read(encode(lab, 'TIFF')).astype(float) - photo).mean() < 3


def exif(*tags, order=b'II*\0'):
    """Makes EXIF data of any tags (number, type, count, bytes of the value), even invalid ones."""
    rows, data, start = b'', b'', 8 + 2 + 12 * len(tags) + 4
    for tag, kind, count, value in tags:
        place = value.ljust(4, b'\0') if len(value) <= 4 else struct.pack('<I', start + len(data))
        rows += struct.pack('<HHI', tag, kind, count) + place
        data += value if len(value) > 4 else b''
    return b'Exif\0\0' + order + struct.pack('<IH', 8, len(tags)) + rows + bytes(4) + data


TURNED = (0x0112, 3, 1, struct.pack('<H', 6))
DAMAGED = {
    'resolution of -1/0': (exif(TURNED, (0x011A, 10, 1, struct.pack('<ii', -1, 0))), True),
    'resolution of 1/0': (exif(TURNED, (0x011A, 5, 1, struct.pack('<II', 1, 0))), True),
    'IFD that is not there': (exif(TURNED, (0x8769, 4, 1, struct.pack('<I', 9_999_999))), True),
    'count of a billion': (exif(TURNED, (0x9000, 7, 2**30, b'abcde')), True),
    'type that is none': (exif(TURNED, (0x010F, 99, 4, b'abcd')), True),
    'orientation of 9': (exif((0x0112, 3, 1, struct.pack('<H', 9))), False),
    'orientation in words': (exif((0x0112, 2, 3, b'up\0')), False),
    'no byte order': (exif(TURNED, order=b'XX*\0'), False),
    'cut off': (exif(TURNED)[:15], False),
}


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('damage', DAMAGED)
def test_only_the_orientation_counts_of_exif(decode, photo, encode, kind, damage):
    tags, turned = DAMAGED[damage]
    data = encode(photo, kind, exif=tags)
    expected = np.rot90(photo, -1) if turned else photo
    for image in (read(data), decode(data)):
        assert image.shape == expected.shape
        assert np.abs(image.astype(float) - expected).mean() < 6


@pytest.mark.parametrize(
    ('marker', 'options'),
    [
        (b'\xff\xe1', {'exif': exif(TURNED)}),
        (b'\xff\xe2', {'icc_profile': icc.profile(*icc.DISPLAY_P3)}),
    ],
)
def test_tags_behind_the_tables_of_a_jpeg_count(decode, photo, encode, marker, options):
    data = encode(photo, **options)
    start, tables = data.index(marker), data.index(b'\xff\xc0')
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], 'big')
    moved = data[:start] + data[end:tables] + data[start:end] + data[tables:]
    np.testing.assert_array_equal(decode(moved), read(data))
    assert not np.array_equal(read(data), pillow(data))


def test_what_is_damaged_beside_the_pixels_refuses_no_image(photo, encode):
    jpeg = encode(
        photo, 'MPO', save_all=True, append_images=[Image.fromarray(photo)], exif=exif(TURNED)
    )
    at = jpeg.index(b'MPF\0')
    # The MPF segment of an MPO file, which is otherwise a JPEG.
    for offset in range(4, 90, 5):
        damaged = bytearray(jpeg)
        damaged[at + offset] ^= 0xFF
        assert read(bytes(damaged)).shape == np.rot90(photo).shape
    # Optional chunks of a PNG.
    for name, value in ((b'gAMA', b'\0'), (b'iCCP', b''), (b'tRNS', b'\0')):
        data = png(2, 1, 8, 2, bytes([10, 20, 30, 40, 50, 60]), [(name, value)])
        np.testing.assert_array_equal(read(data)[0], [[10, 20, 30], [40, 50, 60]])
    # The EXIF data of an AVIF file.
    avif = encode(photo, 'AVIF', exif=exif(TURNED))
    damaged = avif.replace(b'II*\0', bytes(4))
    np.testing.assert_array_equal(read(damaged), read(avif))
    assert read(damaged).shape == np.rot90(photo).shape
    # A wrong checksum of a PNG chunk; in the pixels it is an error.
    data = bytearray(encode(photo, 'PNG', dpi=(72, 72), exif=exif(TURNED)))
    data[data.index(b'pHYs') + 6] ^= 0xFF  # its checksum is wrong now
    np.testing.assert_array_equal(read(bytes(data)), np.rot90(photo, -1))
    data[data.index(b'IDAT') + 40] ^= 0xFF
    with pytest.raises(BadImage, match='PNG'):
        read(bytes(data))


def test_a_tiff_with_damaged_tags_is_read(photo, encode):
    data = encode(photo, 'TIFF', tiffinfo={0x0112: 6, 0x011A: 72.0, 0x010E: 'words'})
    assert read(data).shape == np.rot90(photo).shape
    at = data.index(struct.pack('<HHI', 0x011A, 5, 1))
    rational = struct.unpack_from('<I', data, at + 8)[0]
    assert read(data[:rational] + bytes(8) + data[rational + 8 :]).shape == np.rot90(photo).shape
    assert read(data[: at + 8] + b'\xff' * 4 + data[at + 12 :]).shape == np.rot90(photo).shape


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_an_opened_image_has_the_pixels_of_its_file(photo, encode, kind):
    turned = {'tiffinfo': {0x0112: 6}} if kind == 'TIFF' else {'exif': exif(TURNED)}
    data = encode(photo, kind, icc_profile=icc.profile(*icc.ADOBE_RGB), **turned)
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(pixels(image), read(data))
    np.testing.assert_array_equal(pixels(Image.fromarray(photo)), photo)
