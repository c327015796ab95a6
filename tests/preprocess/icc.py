"""Makes ICC profiles of version 2: RGB from primaries and a gamma, grey, and CMYK."""

import itertools
import struct

# The XYZ columns of red, green and blue under D50, and the gamma.
ADOBE_RGB = (
    ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
    2.19921875,
)
DISPLAY_P3 = (
    ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)),
    2.2,
)
_D50 = (0.96420, 1.0, 0.82491)


def profile(primaries=None, gamma=2.2):
    """Returns the bytes of an RGB profile, or of a grey one without primaries."""
    tags = {b'desc': _text(b'test'), b'cprt': b'text\0\0\0\0test\0', b'wtpt': _xyz(_D50)}
    if primaries is None:
        tags[b'kTRC'] = _curve(gamma)
    for name, column in zip(b'rgb', primaries or (), strict=False):
        tags[bytes([name]) + b'XYZ'], tags[bytes([name]) + b'TRC'] = _xyz(column), _curve(gamma)
    return _file(tags, b'mntrRGB XYZ ' if primaries else b'mntrGRAYXYZ ')


def inks():
    """Returns the bytes of a CMYK profile, a table of 2 × 2 × 2 × 2 colours in Lab.

    Its inks are paler than pure RGB colours.
    """
    corners = []
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        paper = 255 - 60 * c - 90 * m - 20 * y
        corners += [
            paper * (1 - k),
            128 + (-30 * c + 60 * m) * (1 - k),
            128 + (-40 * c + 60 * y) * (1 - k),
        ]
    line = bytes(range(256))
    matrix = struct.pack('>9i', *(65536 * (i % 4 == 0) for i in range(9)))
    table = b'mft1\0\0\0\0' + bytes([4, 3, 2, 0]) + matrix + 4 * line + bytes(corners) + 3 * line
    return _file({b'desc': _text(b'inks'), b'wtpt': _xyz(_D50), b'A2B0': table}, b'prtrCMYKLab ')


def _file(tags, kind):
    """Makes a profile from tags; class, colour space and connection space have four letters each."""
    table, data, start = b'', b'', 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack('>4sII', name, start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    size = start + len(data)
    head = struct.pack('>I4sI12s', size, b'lcms', 0x02100000, kind)
    head += bytes(12) + b'acsp' + bytes(28) + struct.pack('>3i', *(_fixed(v) for v in _D50))
    return head.ljust(128, b'\0') + struct.pack('>I', len(tags)) + table + data


def _fixed(value):
    return round(value * 65536)


def _xyz(values):
    return b'XYZ \0\0\0\0' + struct.pack('>3i', *map(_fixed, values))


def _curve(gamma):
    return b'curv\0\0\0\0' + struct.pack('>IH', 1, round(gamma * 256))


def _text(text):
    return b'desc\0\0\0\0' + struct.pack('>I', len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67)
