"""The grid of a sweep: read, set in a config key by key, and checked."""

import ast
import copy
import hashlib
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from vision.core import cli
from vision.core import config as config_lib
from vision.core.config_mistakes import explain_value
from vision.core.errors import UserError


class Trial(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder, 'optimizer.lr=0.1,seed=0'.
      values: what differs, by key.
      config: with these values.
    """

    name: str
    values: dict[str, Any]
    config: ConfigDict


def make_trials(config: Mapping[str, Any], grid: str) -> list[Trial]:
    """Returns every combination of a grid, the last key's values following one another first.

    Values are set as `--config.KEY=VALUE` sets them: what refers to a key follows it.

    Raises:
      UserError: a grid that cannot be read, or a key or value that the config refuses.
    """
    choices = read_grid(grid)
    base = config_lib.Config(config, type_safe=False)
    if isinstance(config, ConfigDict) and not isinstance(config, FrozenConfigDict):
        base = config  # whose references are followed
    known = base.to_dict(preserve_field_references=True)
    for key in choices:
        _check_key(known, key)
    trials = []
    for combination in itertools.product(*choices.values()):
        chosen = {key: value for key, (_, value) in zip(choices, combination, strict=True)}
        texts = {key: text for key, (text, _) in zip(choices, combination, strict=True)}
        try:
            resolved = config_lib.resolve(with_values(base, texts))
        except UserError as e:
            raise UserError(f'--grid, {name_of(chosen)}: {e}') from None
        trials.append(Trial(name_of(chosen), chosen, resolved))
    return trials


def read_grid(grid: str) -> dict[str, list[tuple[str, Any]]]:
    """Reads 'key=value,value;key=value': literals of Python, or else text.

    Commas and semicolons within brackets and quotes belong to the value.

    Returns:
      The values of each key, as text for the command line and as they are shown.

    Raises:
      UserError: it is not of that form.
    """
    parsed: dict[str, list[tuple[str, Any]]] = {}
    for part in _split(grid, ';'):
        key, equals, text = part.partition('=')
        key = key.strip().removeprefix('config.')
        choices = [_value(v) for v in _split(text, ',')]
        if not equals or not key or not choices:
            raise UserError(f"--grid: {part!r} is not 'key=value,value'")
        if key in parsed or len({repr(value) for _, value in choices}) < len(choices):
            raise UserError(f'--grid: {key} comes twice, or has a value twice')
        parsed[key] = choices
    if not parsed:
        raise UserError("--grid is empty; write 'optimizer.lr=0.1,0.03;seed=0,1,2'")
    return parsed


def with_values(config: ConfigDict, values: Mapping[str, str]) -> ConfigDict:
    """Returns a copy of a config with values set as `--config.KEY=TEXT` sets them; references are followed.

    Args:
      config: as a file in `configs/` returns it; it stays as it is.
      values: text by key, 'optimizer.lr': '0.1'.

    Raises:
      UserError: a value that its key cannot have.
    """
    cli.accept_none()
    own = copy.deepcopy(config)  # keeps references, which `copy_and_resolve_references` replaces
    cli.make_plain(own, 'config')
    for key, text in values.items():
        argv = ['', f'--config.{key}={text}']
        read = flags.FlagValues()
        try:
            config_flags.DEFINE_config_dict(
                'config', own, flag_values=read, lock_config=False, accept_new_attributes=True, sys_argv=argv
            )  # fmt: skip
            read(argv)
        except (flags.Error, AttributeError, LookupError, TypeError, ValueError):
            raise UserError(explain_value(config, key, text)) from None
    return own


def _check_key(known: dict[str, Any], key: str) -> None:
    """Raises UserError unless a config has a key's section, or the key itself where it has no section."""
    *sections, name = key.split('.')
    at: Any = known
    for section in sections:
        at = at.get(section)
        if not isinstance(at, dict):
            raise UserError(f'--grid: the config has no section {section!r} ({key})')
    if not sections and name not in known:
        raise UserError(f'--grid: the config has no key {key!r}')


def name_of(values: dict[str, Any]) -> str:
    """A folder's name: what the values are, and where that is not all of it, a hash."""
    text = ','.join(f'{key}={_text(value)}' for key, value in values.items())
    safe = re.sub(r'[^\w.=,+-]', '_', text)[:120]
    return safe if safe == text else f'{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}'


def _text(value: Any) -> str:
    """A value as a name has it: (3, 3, 3) is 3-3-3."""
    flat = isinstance(value, tuple) and len(value) > 1 and all(isinstance(v, int) for v in value)
    return '-'.join(map(str, value)) if flat else str(value)


def _value(text: str) -> tuple[str, Any]:
    """A value as text for the command line, without quotes around all of it, and as Python reads it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text, text
    return (value if isinstance(value, str) else text), value


def _split(text: str, separator: str) -> list[str]:
    """Cuts a text at a separator that stands outside of brackets and quotes."""
    parts, depth, quote = [''], 0, ''
    for c in text:
        if quote:
            quote = '' if c == quote else quote
        elif c in '\'"':
            quote = c
        else:
            depth += (c in '([{') - (c in ')]}')
        if c == separator and not depth and not quote:
            parts.append('')
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]
