"""Decoding of any image file with Pillow to uint8 [H, W, C].

The op `decode` reads plain JPEGs faster, with TensorFlow (`vision.preprocess.ops.decode`). It reads
all other files with `read` below:

* CMYK is converted to RGB and grey is repeated. Grey of more than 8 bits is scaled to 8 bits by the
  file's tags (`vision.preprocess.colour`).
* Colours of another space, such as Adobe RGB or Display P3, are converted to sRGB. The space is
  given by an embedded profile, by the code points of PNG, AVIF and HEIC, or by the chromaticities
  of a PNG.
* Transparent pixels are composed on white, as in a browser. Dropping the alpha channel would show
  colours that are not meant to be seen.
* The first frame of an animation is used. The EXIF orientation is applied, and all other tags are
  ignored: damaged metadata does not make an image unreadable.

A JPEG that ends before its end marker is refused, even if it contains a part of the image. A JPEG
with an end marker and damage inside is read as in browsers: the part before the damage is correct,
and libjpeg recovers as much as it can of the rest. Neither TensorFlow nor Pillow reports such
damage, because JPEG has no checksum; libjpeg prints a warning on stderr. Files that libjpeg refuses
are refused here, too.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision.data.files import endings, is_read, pillow
from vision.data.source import BadImage
from vision.preprocess import colour

MAX_PIXELS = 200_000_000  # the number of pixels of the largest phone cameras; 600 MB as RGB
# Limit on longer side / shorter side. Resizing a narrow strip by its shorter side would need too
# much memory.
MAX_ASPECT = 100

_ORIENTATION = 0x0112
_HEIF = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')  # brands
_PNG = b'\x89PNG\r\n\x1a\n'
_ICON = b'\0\0\1\0'
# Optional chunks of a PNG that affect how its pixels are interpreted.
_CHUNKS = (b'tRNS', b'iCCP', b'cICP', b'cHRM', b'gAMA', b'sRGB', b'eXIf')


def read(data: bytes, channels: int = 3) -> np.ndarray:
    """Reads any image with Pillow.

    Args:
      data: an encoded image.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [H, W, channels].

    Raises:
      BadImage: the data are not an image or are cut off, or the size exceeds MAX_PIXELS or
        MAX_ASPECT.
    """
    if not data:
        raise BadImage('empty file')
    try:
        return _read(data, channels)
    except BadImage as e:
        why = e
    # Try again without the metadata, which may be the only damaged part.
    for bare, orientation in without_metadata(data):
        try:
            return _read(bare, channels, orientation)
        except BadImage as e:
            why = e
    raise why


def _read(data: bytes, channels: int, orientation: int | None = None) -> np.ndarray:
    """Reads an image once; `orientation` replaces the one in its metadata."""
    from PIL import UnidentifiedImageError

    check_icon(data)
    try:
        image = pillow().open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise BadImage(_unidentified(data)) from None
    except Exception as e:  # Pillow's plug-ins raise any exception for damaged files
        raise BadImage(f'damaged header ({e})') from None
    if not is_read(image.format):  # loading an EPS would run Ghostscript
        raise BadImage('not an image')
    # A grey model sees the luminance that a JPEG stores, as where TensorFlow decodes it.
    plain = image.format in ('JPEG', 'MPO') and image.mode == 'RGB' and data.endswith(b'\xff\xd9')
    if channels == 1 and plain and not jpeg_needs_pillow(data):
        image.draft('L', image.size)
    return pixels(image, channels, data, orientation)


def _unidentified(data: bytes) -> str:
    """Returns why Pillow does not recognise data as an image."""
    if data.startswith((b'II*\0', b'MM\0*')):
        return 'a damaged or unsupported TIFF'
    if data.startswith(b'version https://git-lfs'):
        return 'a Git LFS pointer in place of the image; run git lfs pull'
    # Formats whose plug-in is not installed.
    for ending, is_one, package in (
        ('.heic', data[4:8] == b'ftyp' and data[8:12] in _HEIF, 'pillow-heif'),
        ('.jxl', data.startswith((b'\xff\n', b'\0\0\0\x0cJXL ')), 'pillow-jxl-plugin'),
    ):
        if is_one and ending not in endings():
            return f'reading {ending} needs the package {package}'
    return 'not an image'


def pixels(
    image: Any, channels: int = 3, data: bytes = b'', orientation: int | None = None
) -> np.ndarray:
    """Loads a `PIL.Image` and returns its pixels in the form that `read` describes.

    Args:
      image: a `PIL.Image` that may not be loaded yet.
      channels: 3 for RGB, 1 for grey.
      data: the bytes of its file, if available; a PNG with 16 bits needs them for its transparent
        colour.
      orientation: EXIF orientation, 1 … 8; by default that of the image.

    Raises:
      BadImage: the rest of the file is damaged, or the size exceeds a limit.
    """
    check_size(*image.size)
    try:
        data = data or _file_of(image)
        # TIFF needs checks before its pixels are loaded.
        if image.format == 'TIFF':
            colour.check_tiff(image)
            image.load_end = lambda: None  # it would read all tags, which may be damaged
        image.load()
        return _to_array(image, data, channels, orientation or _orientation(image))
    except BadImage:
        raise
    except Exception as e:  # the text of Pillow's exception distinguishes truncated files
        name = image.format or 'image'
        cut = any(sign in str(e).lower() for sign in ('truncated', 'not enough image data'))
        raise BadImage(f'truncated {name}' if cut else f'damaged {name} ({e})') from None


def _file_of(image: Any) -> bytes:
    """Returns the bytes of an opened PNG or AVIF file, some of whose tags Pillow does not expose.

    b'' for other formats, and for images without a file.
    """
    file = getattr(image, 'fp', None)
    if image.format not in ('PNG', 'AVIF') or file is None:
        return b''
    at, _ = file.tell(), file.seek(0)
    data = file.read()
    file.seek(at)
    return data


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises BadImage if an image has too many pixels or is too narrow."""
    if width * height > max_pixels:
        raise BadImage(
            f'claims {width}x{height} pixels; the limit is {max_pixels / 1_000_000:g} million'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f'is a strip of {width}x{height} pixels; the limit is {MAX_ASPECT} to 1')


def check_icon(data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """Raises BadImage if an icon has an image of too many pixels.

    Pillow decodes an image of an ICO when it opens the file, so `check_size` would come too late. It
    takes the size of an ICNS from the kind of its images, which may claim another one.
    """
    if data.startswith(b'icns'):
        return _check_icns(data, max_pixels)
    if not data.startswith(_ICON):
        return
    # A table names the places of the images: PNGs, and BMPs whose height counts a mask, too.
    for entry in range(6, min(6 + 16 * int.from_bytes(data[4:6], 'little'), len(data) - 15), 16):
        (at,) = struct.unpack_from('<I', data, entry + 12)
        head = data[at : at + 24].ljust(24, b'\0')
        if head.startswith(_PNG):
            width, height = struct.unpack_from('>II', head, 16)
        else:
            width, height = map(abs, struct.unpack_from('<HH' if head[0] == 12 else '<ii', head, 4))
            height //= 2
        if width * height > max_pixels:
            check_size(width, height, max_pixels)


def _check_icns(data: bytes, max_pixels: int) -> None:
    """Implements `check_icon` for ICNS, whose blocks are PNG, JPEG 2000 or small bitmaps."""
    at, end = 8, min(len(data), int.from_bytes(data[4:8], 'big'))
    while at < end:
        # A block begins with its kind and its size.
        size = int.from_bytes(data[at + 4 : at + 8], 'big')
        if size < 8:
            raise BadImage('damaged ICNS')
        try:
            inner = pillow().open(io.BytesIO(data[at + 8 : at + size]), 'r', ('PNG', 'JPEG2000'))
        except Exception:  # a bitmap, or a damaged header, which Pillow will refuse to decode
            inner = None
        if inner is not None and inner.width * inner.height > max_pixels:
            check_size(inner.width, inner.height, max_pixels)
        at += size


def _to_array(image: Any, data: bytes, channels: int, orientation: int) -> np.ndarray:
    """Converts a loaded image to upright 8-bit sRGB or grey pixels on white."""
    from PIL import Image

    if image.mode == 'La':  # grey multiplied by its transparency, which converts to LA only
        image = image.convert('LA')
    # Bring the values to 8 bits and sRGB.
    grey = image.mode[0] in '1LIF' and image.mode != 'LAB'
    if image.mode == 'L' or image.mode[0] in 'IF':
        image = colour.to_8_bit(image)
    image = colour.mend_transparency(image, data)
    transparent = image.has_transparency_data
    image = colour.to_srgb(image.convert('RGBA') if transparent else image, grey, data)
    # Compose transparent pixels on white, then turn the image upright.
    if transparent:
        white = Image.new('RGBA', image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert('RGB' if channels == 3 else 'L')
    if orientation != 1:
        image = image.transpose(_upright()[orientation])
    # Grey images get an axis for the channel.
    array = np.asarray(image)
    return array if channels == 3 else array[:, :, None]


def _upright() -> dict[int, Any]:
    """Returns the transposition that undoes each EXIF orientation."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


def _orientation(image: Any) -> int:
    """Returns the EXIF orientation, 1 … 8; 1 if the tag is missing, invalid or damaged.

    No other tag is read.
    """
    try:
        # TIFF has the orientation in its own tags.
        if image.format == 'TIFF':
            value = image.tag_v2.get(_ORIENTATION)
        else:
            value = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises any exception for damaged tags
        return 1
    return int(value) if value in range(1, 9) else 1


def _orientation_in(data: bytes) -> int:
    """Returns the EXIF orientation of a JPEG whose header Pillow cannot read."""
    # Search the first 64 KiB for the EXIF segment.
    at = data.find(b'Exif\0\0', 0, 1 << 16)
    exif = pillow().Exif()
    try:
        exif.load(data[at : at + (1 << 16)])
        value = exif.get(_ORIENTATION)
    except Exception:
        return 1
    return int(value) if at > 0 and value in range(1, 9) else 1


def without_metadata(data: bytes) -> Iterator[tuple[bytes, int | None]]:
    """Yields copies of an image without metadata, each with the EXIF orientation that was removed.

    For a PNG the first copy keeps the chunks that affect its pixels. For an AVIF only EXIF is
    disabled, because libavif refuses damaged EXIF (libavif issue 3306); the orientation is stored
    elsewhere and remains.
    """
    if data.startswith(b'\xff\xd8\xff'):
        yield _bare_jpeg(data), _orientation_in(data)
    elif data.startswith(_PNG):
        yield _bare_png(data, _CHUNKS), None
        yield _bare_png(data, ()), None
    elif data[4:11] == b'ftypavi':
        # Rename the item type Exif, without changing any length.
        yield re.sub(rb'(infe.{8,10}?)Exif', rb'\1none', data, flags=re.DOTALL), None


def _bare_jpeg(data: bytes) -> bytes:
    """Returns a JPEG without metadata.

    It keeps the segments that are needed to decode it, and those of JFIF, Adobe and the profile.
    """
    # Walk the segments up to the start of the scan (marker 0xDA).
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from('>H', data, at + 2)[0]
        marker, segment = data[at + 1], data[at:end]
        # Application segments and comments are metadata.
        tag = 0xE0 <= marker <= 0xEF or marker == 0xFE
        profile = marker == 0xE2 and segment[4:].startswith(b'ICC_PROFILE')
        if not tag or marker in (0xE0, 0xEE) or profile:
            parts.append(segment)
        at = end
    return b''.join([*parts, data[at:]])


def _bare_png(data: bytes, optional: Sequence[bytes]) -> bytes:
    """Returns a PNG with only its critical chunks and those optional chunks that are intact."""
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        size, name = struct.unpack_from('>I4s', data, at)
        chunk = data[at : at + 12 + size]
        # The checksum of an intact chunk matches.
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], 'big')
        # The name of a critical chunk begins with a capital letter.
        if name[:1].isupper() or (name in optional and whole):
            parts.append(chunk)
        at += len(chunk)
    return b''.join(parts)


def jpeg_needs_pillow(data: bytes) -> bool:
    """True if a JPEG has an orientation or a profile other than sRGB, or a damaged header."""
    try:
        image = pillow().open(io.BytesIO(data))
        check_size(*image.size)
        return _orientation(image) != 1 or not colour.is_srgb(image)
    except Exception:
        return True
