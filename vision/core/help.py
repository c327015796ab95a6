"""The text of `--help`: a command's docstring, followed by its flags under headings."""

import re
import sys
import textwrap
from typing import Any

from absl import flags

_NAME, _WIDTH = 26, 100  # the first and the last column of explanations
# The headings, each with the number of flags that are defined before it.
_headings: list[tuple[str, int]] = []


def heading(title: str) -> None:
    """Puts the flags that are defined after this call under a heading."""
    _headings.append((title, len(own_flags())))


def own_flags() -> list[Any]:
    """Returns the command's flags in order, without those of absl and overrides of a config."""
    modules = flags.FLAGS.flags_by_module_dict()
    names = {
        flag.name
        for module, defined in modules.items()
        for flag in defined
        if module.split('.')[0] != 'absl' and '.' not in flag.name
    }
    return [flags.FLAGS[name] for name in flags.FLAGS if name in names]


def help_text() -> str:
    """Returns the text that `--help` prints."""
    # Cut the list of flags at the headings.
    own, headings = own_flags(), list(_headings)
    if not headings or headings[0][1]:  # flags before the first heading
        headings.insert(0, ('Flags', 0))
    ends = [first for _, first in headings[1:]] + [len(own)]
    parts = [(sys.modules['__main__'].__doc__ or '').strip()]
    for (title, first), end in zip(headings, ends, strict=True):
        parts.append('\n'.join([f'{title}:', *map(_entry, own[first:end])]))
    return '\n\n'.join([*parts, '--helpfull also lists the flags of the libraries.'])


def _entry(flag: Any) -> str:
    """Returns the name of a flag, and its explanation and default, indented and wrapped."""
    name = f'  --[no]{flag.name}' if flag.boolean else f'  --{flag.name}={_values(flag)}'
    default = flag.default
    if isinstance(default, list):
        default = ','.join(default)
    if isinstance(default, bool):
        default = 'yes' if default else ''
    shown = isinstance(default, str | int | float) and default != ''
    # absl puts the values of an enum before its explanation.
    text = re.sub(r'^<.*?>: ', '', ' '.join(flag.help.split()))
    text += f' (default: {default})' if shown else ''
    indent = ' ' * _NAME
    if len(name) < _NAME:
        return textwrap.fill(
            text, _WIDTH, initial_indent=name.ljust(_NAME), subsequent_indent=indent
        )
    return f'{name}\n' + textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent
    )


def _values(flag: Any) -> str:
    """Returns a flag's possible values: the words of an enum, N for a number, otherwise '…'."""
    if hasattr(flag.parser, 'enum_values'):
        return '|'.join(flag.parser.enum_values)
    return 'N' if flag.flag_type() in ('int', 'float') else '…'
