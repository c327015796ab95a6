"""Names in figures, in whatever script: fonts that have their characters, and escapes where none has."""

import functools
from collections.abc import Iterable

_DEFAULT = 'DejaVu Sans'  # Matplotlib's own
_NO_LETTERS = (
    'last resort',
    'lastresort',
    'emoji',
)  # fonts of boxes, and of bitmaps that cannot be drawn


def families_for(texts: Iterable[str]) -> list[str]:
    """Installed fonts that have the characters of these texts, for `rc_context({'font.family': …})`; the default first."""
    chosen = [_DEFAULT]
    for char in sorted({c for text in texts for c in text}):
        if char.isprintable() and not any(_has(family, char) for family in chosen):
            chosen += [family for family in _installed() if _has(family, char)][:1]
    return chosen


def legible(text: str, families: Iterable[str] = (_DEFAULT,), length: int | None = None) -> str:
    """The text, with '\\u732b' and the like for what none of the fonts has.

    Args:
      text: a name; line breaks and lone surrogates are escaped, too.
      families: the fonts, as `families_for` returns them.
      length: at most so many characters; the end is kept.
    """
    families = list(families)
    shown = [
        c if c.isprintable() and any(_has(f, c) for f in families) else _escape(c) for c in text
    ]
    if length is not None and len(''.join(shown)) > length:
        while shown and len(''.join(shown)) > length - 1:
            shown.pop(0)
        shown.insert(0, '…')
    return ''.join(shown)


def file_of(family: str = _DEFAULT) -> str:
    """The file of a font."""
    return _installed()[family]


def _escape(char: str) -> str:
    if char == ' ':
        return char
    return (
        char.encode('unicode_escape').decode()
        if ord(char) > 127 or not char.isprintable()
        else char
    )


@functools.cache
def _installed() -> dict[str, str]:
    """Files of the installed fonts by family."""
    from matplotlib.font_manager import fontManager

    upright = [font for font in fontManager.ttflist if font.style == 'normal']
    # Of a family's weights the usual one comes last, and stays.
    upright.sort(key=lambda font: font.weight in (400, 'normal', 'regular'))
    fonts = {font.name: font.fname for font in upright}
    return {
        name: file
        for name, file in sorted(fonts.items())
        if not any(word in name.lower() for word in _NO_LETTERS)
    }


def _has(family: str, char: str) -> bool:
    return ord(char) in _characters(family)


@functools.cache
def _characters(family: str) -> frozenset[int]:
    """The code points that a font has; none if it cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(_installed()[family]).get_charmap())
    except (KeyError, OSError, RuntimeError):
        return frozenset()
