"""ICC profiles of version 2 made of primaries and a gamma: those of photos, and of grey ones."""

import struct

# Columns XYZ of red, green and blue under D50, and the gamma.
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
    """The bytes of a profile of colours, or of grey without primaries."""
    tags = {b'desc': _text(b'test'), b'cprt': b'text\0\0\0\0test\0', b'wtpt': _xyz(_D50)}
    if primaries is None:
        tags[b'kTRC'] = _curve(gamma)
    for name, column in zip(b'rgb', primaries or (), strict=False):
        tags[bytes([name]) + b'XYZ'], tags[bytes([name]) + b'TRC'] = _xyz(column), _curve(gamma)
    table, data, start = b'', b'', 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack('>4sII', name, start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    size = start + len(data)
    space = b'RGB ' if primaries else b'GRAY'
    head = struct.pack('>I4sI4s4s4s', size, b'lcms', 0x02100000, b'mntr', space, b'XYZ ')
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
