"""Fonts for text of any script in figures, and escapes for characters that no font has."""

import functools
from collections.abc import Iterable

_DEFAULT = 'DejaVu Sans'  # Matplotlib's default font
# Parts of the names of unusable fonts: those that show a box for every character, and bitmap fonts,
# which Matplotlib cannot draw.
_NO_LETTERS = (
    'last resort',
    'lastresort',
    'emoji',
)


def families_for(texts: Iterable[str]) -> list[str]:
    """Returns installed fonts that cover the characters of these texts, the default font first.

    The result is for `matplotlib.rc_context({'font.family': …})`.
    """
    chosen = [_DEFAULT]
    # Add a font for each character that the fonts so far do not cover.
    for char in sorted({c for text in texts for c in text}):
        if char.isprintable() and not any(_has(family, char) for family in chosen):
            chosen += [family for family in _installed() if _has(family, char)][:1]
    return chosen


def legible(text: str, families: Iterable[str] = (_DEFAULT,), length: int | None = None) -> str:
    """Returns the text with escapes such as '\\u732b' for characters that none of the fonts has.

    Args:
      text: a name; line breaks and lone surrogates are escaped, too.
      families: the fonts, from `families_for`.
      length: maximum number of characters; a longer text is cut at its start.
    """
    families = list(families)
    shown = [
        c if c.isprintable() and any(_has(f, c) for f in families) else _escape(c) for c in text
    ]
    # Drop characters from the start until the text fits together with an ellipsis.
    if length is not None and len(''.join(shown)) > length:
        while shown and len(''.join(shown)) > length - 1:
            shown.pop(0)
        shown.insert(0, '…')
    return ''.join(shown)


def file_of(family: str = _DEFAULT) -> str:
    """The path of a font's file."""
    return _installed()[family]


def _escape(char: str) -> str:
    """The escape of a character; printable ASCII stays as it is."""
    if char == ' ':
        return char
    return (
        char.encode('unicode_escape').decode()
        if ord(char) > 127 or not char.isprintable()
        else char
    )


@functools.cache
def _installed() -> dict[str, str]:
    """The files of the installed fonts by family."""
    from matplotlib.font_manager import fontManager

    upright = [font for font in fontManager.ttflist if font.style == 'normal']
    # Sort the regular weight of each family last, so that the dict below keeps it.
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
    """The code points that a font covers; empty if its file cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(_installed()[family]).get_charmap())
    except (KeyError, OSError, RuntimeError):
        return frozenset()
