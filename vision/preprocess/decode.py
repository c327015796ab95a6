"""Any image file → uint8 [H, W, C], with Pillow, as people expect to see the picture.

The op `decode` reads plain JPEGs faster, with TensorFlow (`vision.preprocess.ops.decode`), and
everything else as `read` does:

* CMYK is converted to RGB, grey is repeated, grey of more than 8 bits is scaled to 8, by the file's own tags
  (`vision.preprocess.colour`);
* colours of another space, as Adobe RGB and Display P3, are converted to sRGB, by an embedded profile, by the code points
  of PNG, AVIF and HEIC, or by a PNG's chromaticities;
* what is transparent is laid on white, as a browser does: dropping the alpha channel would show
  colours that nobody was meant to see;
* the first frame of an animation is taken; EXIF's orientation is applied, and no other tag matters: what
  is damaged beside the pixels refuses no photo.

A JPEG that ends before its end marker is refused, though part of the picture is there. One that is
damaged inside and does have its end marker is read as browsers read it: what comes before the
damage is intact, libjpeg goes on behind it as best it can, and neither TensorFlow nor Pillow can
tell that it did (JPEG has no checksum; libjpeg's warning goes to stderr). What libjpeg refuses is refused.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision.data.files import pillow
from vision.data.source import BadImage
from vision.preprocess import colour

MAX_PIXELS = 200_000_000  # the largest phone cameras; 600 MB as RGB
# Longer side over shorter: resized by its shorter side, a strip of pixels would fill the memory.
MAX_ASPECT = 100

_ORIENTATION = 0x0112
_PNG = b'\x89PNG\r\n\x1a\n'
# Chunks of a PNG that may be absent, and that say what its pixels mean.
_CHUNKS = (b'tRNS', b'iCCP', b'cICP', b'cHRM', b'gAMA', b'sRGB', b'eXIf')


def read(data: bytes, channels: int = 3) -> np.ndarray:
    """Reads any image with Pillow.

    Args:
      data: an encoded image.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [H, W, channels].

    Raises:
      BadImage: it is no image, is cut off, claims more than MAX_PIXELS, or is a mere strip.
    """
    if not data:
        raise BadImage('empty file')
    try:
        return _read(data, channels)
    except BadImage as e:
        why = e
    # Once more without what is beside the pixels, which may be all that is damaged.
    for bare, orientation in _without_metadata(data):
        try:
            return _read(bare, channels, orientation)
        except BadImage as e:
            why = e
    raise why


def _read(data: bytes, channels: int, orientation: int | None = None) -> np.ndarray:
    from PIL import UnidentifiedImageError

    try:
        image = pillow().open(io.BytesIO(data))
    except UnidentifiedImageError:
        known = data.startswith((b'II*\0', b'MM\0*'))
        raise BadImage(
            'a damaged TIFF, or of a kind that is not read' if known else 'not an image'
        ) from None
    except Exception as e:  # Pillow's plugins raise whatever the damage leads them to
        raise BadImage(f'damaged header ({e})') from None
    return pixels(image, channels, data, orientation)


def pixels(
    image: Any, channels: int = 3, data: bytes = b'', orientation: int | None = None
) -> np.ndarray:
    """The pixels of a `PIL.Image`, whose file may not have been read through yet; see `read`.

    Args:
      image: a `PIL.Image`.
      channels: 3 for RGB, 1 for grey.
      data: its file, where that is at hand: of a PNG it says which colour is transparent to the bit.
      orientation: EXIF's, 1 … 8; by default the image's own.

    Raises:
      BadImage: the rest of its file is damaged, or its size is refused.
    """
    _check_size(*image.size)
    try:
        data = data or _file_of(image)
        if image.format == 'TIFF':
            colour.check_tiff(image)
            image.load_end = lambda: None  # it would read every tag
        image.load()
        return _to_array(image, data, channels, orientation or _orientation(image))
    except BadImage:
        raise
    except Exception as e:
        name = image.format or 'image'
        cut = any(sign in str(e).lower() for sign in ('truncated', 'not enough image data'))
        raise BadImage(f'truncated {name}' if cut else f'damaged {name} ({e})') from None


def _file_of(image: Any) -> bytes:
    """The file of an image that is not read yet, of a format whose file says more than Pillow tells; else b''."""
    file = getattr(image, 'fp', None)
    if image.format not in ('PNG', 'AVIF') or file is None:
        return b''
    at, _ = file.tell(), file.seek(0)
    data = file.read()
    file.seek(at)
    return data


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(
            f'claims {width}x{height} pixels; the limit is {MAX_PIXELS // 1_000_000} million'
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f'is a strip of {width}x{height} pixels; the limit is {MAX_ASPECT} to 1')


def _to_array(image: Any, data: bytes, channels: int, orientation: int) -> np.ndarray:
    from PIL import Image

    grey = image.mode[0] in '1LIF' and image.mode != 'LAB'
    if image.mode == 'L' or image.mode[0] in 'IF':
        image = colour.to_8_bit(image)
    image = colour.mend_transparency(image, data)
    transparent = image.has_transparency_data
    image = colour.to_srgb(image.convert('RGBA') if transparent else image, grey, data)
    if transparent:
        white = Image.new('RGBA', image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert('RGB' if channels == 3 else 'L')
    if orientation != 1:
        image = image.transpose(_upright()[orientation])
    array = np.asarray(image)
    return array if channels == 3 else array[:, :, None]


def _upright() -> dict[int, Any]:
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
    """EXIF's orientation, 1 … 8, from that tag alone; 1 where it says nothing that makes sense."""
    try:
        if image.format == 'TIFF':
            value = image.tag_v2.get(_ORIENTATION)
        else:
            value = image.getexif().get(_ORIENTATION)
    except Exception:  # the tags are damaged, in whatever way
        return 1
    return int(value) if value in range(1, 9) else 1


def _orientation_in(data: bytes) -> int:
    """The orientation in the bytes of a JPEG whose header Pillow cannot read."""
    at = data.find(b'Exif\0\0', 0, 1 << 16)
    exif = pillow().Exif()
    try:
        exif.load(data[at : at + (1 << 16)])
        value = exif.get(_ORIENTATION)
    except Exception:
        return 1
    return int(value) if at > 0 and value in range(1, 9) else 1


def _without_metadata(data: bytes) -> Iterator[tuple[bytes, int | None]]:
    """Yields an image without its tags, and the orientation that was among them; a PNG first with those that matter."""
    if data.startswith(b'\xff\xd8\xff'):
        yield _bare_jpeg(data), _orientation_in(data)
    elif data.startswith(_PNG):
        yield _bare_png(data, _CHUNKS), None
        yield _bare_png(data, ()), None
    elif (
        data[4:11] == b'ftypavi'
    ):  # whose orientation is no tag; libavif refuses damaged EXIF (its issue 3306)
        yield re.sub(rb'(infe.{8,10}?)Exif', rb'\1none', data, flags=re.DOTALL), None


def _bare_jpeg(data: bytes) -> bytes:
    """A JPEG with the segments that decode it, JFIF's, Adobe's and the profile's."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from('>H', data, at + 2)[0]
        marker, segment = data[at + 1], data[at:end]
        tag = 0xE0 <= marker <= 0xEF or marker == 0xFE
        profile = marker == 0xE2 and segment[4:].startswith(b'ICC_PROFILE')
        if not tag or marker in (0xE0, 0xEE) or profile:
            parts.append(segment)
        at = end
    return b''.join([*parts, data[at:]])


def _bare_png(data: bytes, optional: Sequence[bytes]) -> bytes:
    """A PNG with the chunks that it must have, and these of the others as far as they are whole."""
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        size, name = struct.unpack_from('>I4s', data, at)
        chunk = data[at : at + 12 + size]
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], 'big')
        if name[:1].isupper() or (name in optional and whole):
            parts.append(chunk)
        at += len(chunk)
    return b''.join(parts)


def jpeg_needs_pillow(data: bytes) -> bool:
    """True if a JPEG's header has an orientation or a profile, or is not as it should be."""
    try:
        image = pillow().open(io.BytesIO(data))
        _check_size(*image.size)
        return _orientation(image) != 1 or not colour.is_srgb(image)
    except Exception:
        return True
