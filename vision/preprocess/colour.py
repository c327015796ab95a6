"""Tags of a file about the values of its pixels: bits, sign, gamma, profile, transparency."""

import functools
import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision.data.source import BadImage

# Tags of TIFF, and values of theirs.
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _YCBCR, _APART, _SIGNED = 0, 6, 2, 2
_SRGB_GAMMA = 1 / 2.2
_SAME = 1  # of 255: a profile whose colours differ by no more is sRGB itself

# Code points of ITU-T H.273. Table 2: x and y of the white, red, green and blue of a display.
_D65 = (0.3127, 0.329)
_PRIMARIES = {
    1: (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06),  # BT.709 and sRGB
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),  # BT.601, 625 lines
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),  # BT.601, 525 lines
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # DCI-P3
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
# Table 3: the gamma of the display, by ITU-R BT.1886 for video; None is sRGB's curve. HDR is left out.
_GAMMAS = {1: 2.4, 4: 2.2, 5: 2.8, 6: 2.4, 8: 1.0, 13: None, 14: 2.4, 15: 2.4}
# The white of ICC profiles, and the cone responses in which whites are adapted to it (ICC.1:2022, annex E).
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def check_tiff(image: Any) -> None:
    """Raises BadImage for a TIFF that Pillow 12 opens and reads as other pixels, without a word."""
    tags = image.tag_v2
    if tags.get(_PLANES) == _APART and max(tags.get(_BITS, (8,))) > 8:
        raise BadImage('is a TIFF of more than 8 bits whose channels lie apart, which is not read')
    if tags.get(_PHOTOMETRIC) == _YCBCR and image.info.get('compression') == 'raw':
        raise BadImage('is a TIFF of YCbCr without compression, which is not read')


def to_8_bit(image: Any) -> Any:
    """Scales grey of more bits (modes I;16, I and F), and what is signed, to 8; Pillow's own conversion clips at 255.

    Args:
      image: grey; what has 8 bits without a sign is returned as it is.

    Raises:
      BadImage: a pixel is NaN or infinite.
    """
    from PIL import Image

    tags = getattr(image, 'tag_v2', {})
    raw = np.asarray(image)
    bits, signed = tags.get(_BITS, (16,))[0], _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    if image.mode == 'L':
        if not signed:
            return image
        raw = raw.view(np.int8)
    values = raw.astype(np.float64)
    tops = [2.0 ** (bits - signed * (bits != 12)) - 1]
    if image.mode == 'F':
        if not np.isfinite(values).all():
            raise BadImage('has pixels that are not finite')
        tops = [1.0, 255.0, 65535.0]
    elif bits == 32:
        tops = [255.0, 65535.0, *tops]  # whole numbers of 32 bits mostly hold fewer
        values = values if signed else values % 2.0**32  # Pillow has no unsigned mode of 32 bits
    top = next((top for top in tops if values.max(initial=0) <= top), tops[-1])
    values = values * 255 / top
    # Pillow inverts what has up to 8 bits.
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 255 - values
    transparency = image.info.get('transparency')
    if transparency is not None:
        values[raw == transparency] = 255
    eight = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    eight.info = {k: v for k, v in image.info.items() if k != 'transparency'}
    return eight


def mend_transparency(image: Any, data: bytes) -> Any:
    """Makes what the frame of a GIF leaves out transparent, and brings the colour that a PNG calls so to 8 bits, as its pixels."""
    from PIL import Image

    transparent = image.info.get('transparency')
    if image.format == 'GIF' and image.dispose_extent != (0, 0, *image.size):
        whole, box = image.convert('RGBA'), image.dispose_extent
        image = Image.new('RGBA', whole.size)
        image.paste(whole.crop(box), box)
        return image
    if image.format != 'PNG' or transparent is None or image.mode not in ('L', 'RGB') or not data:
        return image
    depth = data[24]
    if depth < 8:
        image.info['transparency'] = transparent * 255 // (2**depth - 1)
    elif depth == 16:
        # Pillow keeps the upper bytes; the lower ones are had as if they were the upper ones.
        lower = Image.open(io.BytesIO(data))
        lower.tile = [tile._replace(args='RGB;16L') for tile in lower.tile]
        upper, colour = np.asarray(image).astype(np.uint16), np.array(transparent)
        opaque = ((upper << 8 | np.asarray(lower)) != colour).any(-1)
        del image.info['transparency']
        image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return image


def to_srgb(image: Any, grey: bool, data: bytes = b'') -> Any:
    """Converts colours to sRGB where the file says that they are of another space.

    A file says so by an embedded profile, by code points (a PNG's chunk cICP, the box nclx of AVIF and HEIC), or, of a
    PNG, by chromaticities and a gamma (cHRM, gAMA).

    Args:
      image: L, RGB, RGBA, CMYK, LAB or P; transparency is kept.
      grey: whether the file is grey: its profile, too, must be.
      data: the file; b'' where it is not at hand.

    Returns:
      The image itself where nothing is to be done, else RGB or RGBA; grey with a gamma stays grey.
    """
    from PIL import ImageCms

    profile, gamma = image.info.get('icc_profile'), image.info.get('gamma')
    if not grey:
        profile = _described(image.info, data) or profile
    if image.mode == 'LAB':
        return ImageCms.applyTransform(image, _from_lab())
    if profile:
        mode = 'CMYK' if image.mode == 'CMYK' else 'L' if grey else 'RGB'
        if (transform := _transform(profile, mode)) is None:
            return image
        colours = image.getchannel(0).convert('L') if grey else image.convert(mode)
        converted: Any = ImageCms.applyTransform(colours, transform)
        if image.mode == 'RGBA':
            converted.putalpha(image.getchannel('A'))
        return converted
    if gamma and 'srgb' not in image.info and _says_something(gamma) and image.mode != '1':
        image = image.convert('RGB') if image.mode == 'P' else image
        values = np.arange(256) / 255
        curve = np.rint(255 * values ** (_SRGB_GAMMA / gamma)).astype(int).tolist()
        alpha = [*range(256)] if image.mode == 'RGBA' else []
        return image.point(curve * (len(image.getbands()) - bool(alpha)) + alpha)
    return image


def _says_something(gamma: float) -> bool:
    return 0.1 < gamma < 5 and abs(gamma - _SRGB_GAMMA) > 0.02


def _described(info: dict[Any, Any], data: bytes) -> bytes | None:
    """A profile of the colours that a file describes in other ways, where these have precedence over its own profile."""
    if points := _code_points(data, bool(info.get('icc_profile'))):
        primaries, transfer = points
        if primaries in _PRIMARIES and transfer in _GAMMAS:
            return _make_profile(_PRIMARIES[primaries], _GAMMAS[transfer])
    if 'chromaticity' in info and not ('srgb' in info or info.get('icc_profile')):
        xy, gamma = info['chromaticity'], info.get('gamma', 0)
        if any(abs(one - other) > 0.002 for one, other in zip(xy, _PRIMARIES[1], strict=False)):
            return _make_profile(xy, 1 / gamma if 0.1 < gamma < 5 else None)
    return None


def _code_points(data: bytes, has_profile: bool) -> tuple[int, int] | None:
    """The code points of a file's primaries and transfer: a PNG's before any profile, AVIF's where there is none."""
    if data.startswith(b'\x89PNG'):
        at = data.find(b'\0\0\0\x04cICP', 0, data.find(b'IDAT'))
        return None if at < 0 else (data[at + 8], data[at + 9])
    at = -1 if has_profile or data[4:8] != b'ftyp' else data.find(b'colrnclx')
    return None if at < 0 else struct.unpack('>HH', data[at + 8 : at + 12])


@functools.lru_cache(maxsize=64)
def _make_profile(chromaticities: Sequence[float], gamma: float | None) -> bytes | None:
    """An ICC profile (ICC.1:2022) of a display.

    Args:
      chromaticities: x and y of its white, red, green and blue.
      gamma: of its curve; None for sRGB's.

    Returns:
      The profile; None where the chromaticities are those of no display.
    """
    if len(chromaticities) != 8 or max(chromaticities) > 1:
        return None
    xy = np.reshape(chromaticities, (4, 2))
    white, *colours = np.column_stack([xy, 1 - xy.sum(1)])
    matrix = np.transpose(colours)
    if white[1] < 0.1 or abs(np.linalg.det(matrix)) < 0.01:  # the triangle of sRGB has 0.22
        return None
    # The columns add up to the white, and are adapted to that of the profile.
    white = white / white[1]
    matrix = matrix * np.linalg.solve(matrix, white)
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    matrix = np.linalg.solve(_BRADFORD, scale[:, None] * (_BRADFORD @ matrix))

    def fixed(values: Sequence[float] | np.ndarray) -> bytes:
        return np.rint(65536 * np.asarray(values)).astype('>i4').tobytes()

    names = (b'rXYZ', b'gXYZ', b'bXYZ', b'wtpt')
    columns = zip(names, (*matrix.T, _D50), strict=True)
    tags = {name: b'XYZ \0\0\0\0' + fixed(column) for name, column in columns}
    # (a x + b)^g from d on, c x before: g, a, b, c, d.
    srgb = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = fixed(srgb if gamma is None else (gamma, 1, 0, 0, 0))
    tags |= dict.fromkeys((b'rTRC', b'gTRC', b'bTRC'), b'para\0\0\0\0\0\3\0\0' + curve)
    table, body, start = struct.pack('>I', len(tags)), b'', 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack('>4sII', name, start + len(body), len(value))
        body += value
    head = struct.pack('>I4xI12s12x4s28x', start + len(body), 0x04300000, b'mntrRGB XYZ ', b'acsp')
    return (head + fixed(_D50)).ljust(128, b'\0') + table + body


def is_srgb(image: Any) -> bool:
    """True if an image's values are meant as they are: it has no profile, or sRGB's."""
    profile = image.info.get('icc_profile')
    return not profile or _transform(profile, image.mode) is None


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    """From a profile to sRGB; None where the profile is sRGB's, damaged, or of another mode."""
    from PIL import Image, ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = {'GRAY': 'L'}.get(opened.profile.xcolor_space.strip(), mode)
        if space != mode:
            return None
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile('sRGB'), mode, 'RGB')
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == 'CMYK':
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == 'L':
        colours = levels[None]
        plain = np.repeat(colours[..., None], 3, -1)
    else:
        colours = plain = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    converted = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    same = np.abs(converted.astype(int) - plain).max() <= _SAME
    return None if same else transform


@functools.cache
def _from_lab() -> Any:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
    return ImageCms.buildTransform(lab, srgb, 'LAB', 'RGB')
