"""Conversion of pixel values by a file's tags: bit depth, sign, gamma, profile, transparency."""

import functools
import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision.data.source import BadImage

# Numbers of TIFF tags, and values of these tags.
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _YCBCR, _APART, _SIGNED = 0, 6, 2, 2
_SRGB_GAMMA = 1 / 2.2
# A profile whose colours differ from sRGB by at most this much, out of 255, counts as sRGB.
_SAME = 1

# Code points of ITU-T H.273, table 2: x and y of the white, red, green and blue of a display.
_D65 = (0.3127, 0.329)
_PRIMARIES = {
    1: (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06),  # BT.709 and sRGB
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),  # BT.601, 625 lines
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),  # BT.601, 525 lines
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # DCI-P3
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
# Code points of table 3: the gamma of the display (for video by ITU-R BT.1886), or None for the
# curve of sRGB. HDR images are not converted.
_GAMMAS = {1: 2.4, 4: 2.2, 5: 2.8, 6: 2.4, 8: 1.0, 13: None, 14: 2.4, 15: 2.4}
# The white point of ICC profiles, and the Bradford matrix from XYZ to cone responses. Other white
# points are adapted to it by scaling the cone responses (ICC.1:2022, annex E).
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def check_tiff(image: Any) -> None:
    """Raises BadImage for kinds of TIFF that Pillow 12 silently reads with wrong pixels."""
    # Refuse planar files of more than 8 bits, and YCbCr without compression.
    tags = image.tag_v2
    if tags.get(_PLANES) == _APART and max(tags.get(_BITS, (8,))) > 8:
        raise BadImage('is a planar TIFF of more than 8 bits, which is not supported')
    if tags.get(_PHOTOMETRIC) == _YCBCR and image.info.get('compression') == 'raw':
        raise BadImage('is an uncompressed YCbCr TIFF, which is not supported')


def to_8_bit(image: Any) -> Any:
    """Scales grey images of more than 8 bits (modes I;16, I and F) and signed ones to 8 bits.

    Pillow's own conversion would clip the values at 255.

    Args:
      image: a grey image; one with 8 unsigned bits is returned unchanged.

    Raises:
      BadImage: a pixel is NaN or infinite.
    """
    from PIL import Image

    tags = getattr(image, 'tag_v2', {})
    raw = np.asarray(image)
    bits, signed = tags.get(_BITS, (16,))[0], _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    # 8 bits: only signed images are converted.
    if image.mode == 'L':
        if not signed:
            return image
        raw = raw.view(np.int8)
    # List the possible values of white, in ascending order; the tags do not always give it.
    values = raw.astype(np.float64)
    tops = [2.0 ** (bits - signed * (bits != 12)) - 1]
    if image.mode == 'F':
        if not np.isfinite(values).all():
            raise BadImage('has pixels that are not finite')
        tops = [1.0, 255.0, 65535.0]
    elif bits == 32:
        tops = [255.0, 65535.0, *tops]  # files with 32 bits mostly use only 8 or 16 of them
        values = values if signed else values % 2.0**32  # Pillow has no unsigned 32-bit mode
    # Scale by the smallest white that no pixel exceeds.
    top = next((top for top in tops if values.max(initial=0) <= top), tops[-1])
    values = values * 255 / top
    # Invert images whose 0 is white. Pillow does so only for up to 8 bits.
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 255 - values
    # Make transparent pixels white, and drop the transparency.
    transparency = image.info.get('transparency')
    if transparency is not None:
        values[raw == transparency] = 255
    eight = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    eight.info = {k: v for k, v in image.info.items() if k != 'transparency'}
    return eight


def mend_transparency(image: Any, data: bytes) -> Any:
    """Corrects the transparency that Pillow reports for GIF and PNG files.

    The part of a GIF that its first frame does not cover becomes transparent. The transparent
    colour of a PNG is scaled to 8 bits, in the same way as its pixels.

    Args:
      image: the loaded image.
      data: the bytes of its file, if available; needed for a PNG.
    """
    from PIL import Image

    transparent = image.info.get('transparency')
    # Paste the frame into a transparent canvas.
    if image.format == 'GIF' and image.dispose_extent != (0, 0, *image.size):
        whole, box = image.convert('RGBA'), image.dispose_extent
        image = Image.new('RGBA', whole.size)
        image.paste(whole.crop(box), box)
        return image
    if image.format != 'PNG' or transparent is None or image.mode not in ('L', 'RGB') or not data:
        return image
    depth = data[24]  # the bit depth in the PNG header
    # Scale the transparent colour as Pillow scales the pixels.
    if depth < 8:
        image.info['transparency'] = transparent * 255 // (2**depth - 1)
    elif depth == 16:
        # Pillow keeps only the upper bytes of the pixels. Read the image again with the lower bytes
        # as the upper ones, and compare both with the transparent colour.
        lower = Image.open(io.BytesIO(data))
        lower.tile = [tile._replace(args='RGB;16L') for tile in lower.tile]
        upper, colour = np.asarray(image).astype(np.uint16), np.array(transparent)
        opaque = ((upper << 8 | np.asarray(lower)) != colour).any(-1)
        del image.info['transparency']
        image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return image


def to_srgb(image: Any, grey: bool, data: bytes = b'') -> Any:
    """Converts an image to sRGB if its file has another colour space or a gamma value.

    The colour space is given by an embedded profile, by code points (the chunk cICP of PNG, the box
    nclx of AVIF and HEIC), or by the chromaticities and the gamma of a PNG (cHRM, gAMA).

    Args:
      image: an image of mode L, RGB, RGBA, CMYK, LAB or P; transparency is kept.
      grey: True if the file is grey; its profile must then be grey, too.
      data: the bytes of the file; b'' if they are not available.

    Returns:
      The same image if nothing has to be converted, otherwise RGB or RGBA. A grey image with a
      gamma value stays grey.
    """
    from PIL import ImageCms

    profile, gamma = image.info.get('icc_profile'), image.info.get('gamma')
    if not grey:
        profile = _described_profile(image.info, data) or profile
    # Lab images have no embedded profile.
    if image.mode == 'LAB':
        return ImageCms.applyTransform(image, _from_lab())
    # Convert the colours by the profile, and keep alpha.
    if profile:
        mode = 'CMYK' if image.mode == 'CMYK' else 'L' if grey else 'RGB'
        if (transform := _transform(profile, mode)) is None:
            return image
        colours = image.getchannel(0).convert('L') if grey else image.convert(mode)
        converted: Any = ImageCms.applyTransform(colours, transform)
        if image.mode == 'RGBA':
            converted.putalpha(image.getchannel('A'))
        return converted
    # Apply the gamma of a PNG by a lookup table of 256 values per channel.
    if gamma and 'srgb' not in image.info and _says_something(gamma) and image.mode != '1':
        image = image.convert('RGB') if image.mode == 'P' else image
        values = np.arange(256) / 255
        curve = np.rint(255 * values ** (_SRGB_GAMMA / gamma)).astype(int).tolist()
        alpha = [*range(256)] if image.mode == 'RGBA' else []
        return image.point(curve * (len(image.getbands()) - bool(alpha)) + alpha)
    return image


def _says_something(gamma: float) -> bool:
    """True if a gamma value is plausible and differs from sRGB's."""
    return 0.1 < gamma < 5 and abs(gamma - _SRGB_GAMMA) > 0.02


def _described_profile(info: dict[Any, Any], data: bytes) -> bytes | None:
    """Returns an ICC profile of the colour space that a file describes by code points or numbers.

    None if the file has no such description, or if its embedded profile takes precedence.
    """
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
    """The code points of the primaries and the transfer function of a PNG, AVIF or HEIC file.

    None if there are none. In a PNG, the code points take precedence over an embedded profile. In
    AVIF and HEIC, the profile takes precedence over the code points.
    """
    # In a PNG, the chunk is before the pixels.
    if data.startswith(b'\x89PNG'):
        at = data.find(b'\0\0\0\x04cICP', 0, data.find(b'IDAT'))
        return None if at < 0 else (data[at + 8], data[at + 9])
    at = -1 if has_profile or data[4:8] != b'ftyp' else data.find(b'colrnclx')
    return None if at < 0 else struct.unpack('>HH', data[at + 8 : at + 12])


@functools.lru_cache(maxsize=64)
def _make_profile(chromaticities: Sequence[float], gamma: float | None) -> bytes | None:
    """Returns an ICC profile (ICC.1:2022) of a display.

    Args:
      chromaticities: x and y of its white, red, green and blue.
      gamma: the exponent of its transfer function; None for that of sRGB.

    Returns:
      The profile; None if no display can have these chromaticities.
    """
    if len(chromaticities) != 8 or max(chromaticities) > 1:
        return None
    # Extend x and y to XYZ vectors. The columns of the matrix are red, green and blue, unscaled.
    xy = np.reshape(chromaticities, (4, 2))
    white, *colours = np.column_stack([xy, 1 - xy.sum(1)])
    matrix = np.transpose(colours)
    if white[1] < 0.1 or abs(np.linalg.det(matrix)) < 0.01:  # the triangle of sRGB has 0.22
        return None
    # Scale the columns so that they add up to the white point of the display, then adapt them to
    # the white point of ICC profiles.
    white = white / white[1]
    matrix = matrix * np.linalg.solve(matrix, white)
    scale = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    matrix = np.linalg.solve(_BRADFORD, scale[:, None] * (_BRADFORD @ matrix))

    def fixed(values: Sequence[float] | np.ndarray) -> bytes:
        return np.rint(65536 * np.asarray(values)).astype('>i4').tobytes()

    # Write the tags: primaries, white, and one curve for all three channels.
    names = (b'rXYZ', b'gXYZ', b'bXYZ', b'wtpt')
    columns = zip(names, (*matrix.T, _D50), strict=True)
    tags = {name: b'XYZ \0\0\0\0' + fixed(column) for name, column in columns}
    # The values g, a, b, c, d of the curve that is (a x + b)^g for x ≥ d, and c x for smaller x.
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
    """True if an image needs no conversion: it has no profile, or the profile of sRGB."""
    profile = image.info.get('icc_profile')
    return not profile or _transform(profile, image.mode) is None


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    """Returns the transform from a profile to sRGB.

    None if the profile is that of sRGB, is damaged, or is for another mode.
    """
    from PIL import Image, ImageCms

    # Build the transform; damaged profiles are ignored.
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
    # Compare the transform with the identity on a grid of colours.
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
    """Returns the transform from CIE L*a*b* to sRGB."""
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
    return ImageCms.buildTransform(lab, srgb, 'LAB', 'RGB')
