"""Grid of a sweep: parsing, and the config of each trial."""

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
      name: the name of its folder, such as 'optimizer.lr=0.1,seed=0'.
      values: the values of the grid's keys.
      config: the resolved config with these values.
    """

    name: str
    values: dict[str, Any]
    config: ConfigDict


def make_trials(config: Mapping[str, Any], grid: str) -> list[Trial]:
    """Returns a trial for every combination of a grid; the last key varies fastest.

    Values are set as `--config.KEY=VALUE` sets them, so that keys that refer to a key of the grid
    get its value.

    Raises:
      UserError: the grid cannot be parsed, or the config refuses a key or value.
    """
    choices = read_grid(grid)
    # Use a ConfigDict without copying it, because a copy would lose its references.
    base = config_lib.Config(config, type_safe=False)
    if isinstance(config, ConfigDict) and not isinstance(config, FrozenConfigDict):
        base = config
    known = base.to_dict(preserve_field_references=True)
    for key in choices:
        _check_key(known, key)
    # Resolve the config of every combination, so that all mistakes are found before the first run.
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
    """Parses a grid 'key=value,value;key=value'.

    A value is a Python literal, or text if it is not one. Commas and semicolons inside brackets and
    quotes belong to the value.

    Returns:
      For each key its values, as pairs of the text for the command line and the Python value.

    Raises:
      UserError: the grid does not have that form.
    """
    parsed: dict[str, list[tuple[str, Any]]] = {}
    for part in _split(grid, ';'):
        key, equals, text = part.partition('=')
        key = key.strip().removeprefix('config.')
        choices = [_value(v) for v in _split(text, ',')]
        if not equals or not key or not choices:
            raise UserError(f"--grid: {part!r} is not 'key=value,value'")
        if key in parsed or len({repr(value) for _, value in choices}) < len(choices):
            raise UserError(f'--grid: {key} is given twice, or has a value twice')
        parsed[key] = choices
    if not parsed:
        raise UserError("--grid is empty; an example is 'optimizer.lr=0.1,0.03;seed=0,1,2'")
    return parsed


def with_values(config: ConfigDict, values: Mapping[str, str]) -> ConfigDict:
    """Returns a copy of a config with values set as `--config.KEY=TEXT` sets them.

    Args:
      config: a config as a file in `configs/` returns it; it is not changed.
      values: text by key, such as {'optimizer.lr': '0.1'}.

    Raises:
      UserError: a key does not accept its value.
    """
    cli.accept_none()
    # A deep copy keeps references, which `copy_and_resolve_references` would replace by values.
    own = copy.deepcopy(config)
    cli.make_plain(own, 'config')
    # Let the flag parser itself set each value.
    for key, text in values.items():
        argv = ['', f'--config.{key}={text}']
        read = flags.FlagValues()
        try:
            config_flags.DEFINE_config_dict(
                'config', own, flag_values=read, lock_config=False, accept_new_attributes=True, sys_argv=argv
            )  # fmt: skip
            read(argv)
        except (flags.Error, AttributeError, LookupError, TypeError, ValueError):
            # The parser's own messages vary in form and do not say what to do.
            raise UserError(explain_value(config, key, text)) from None
    return own


def _check_key(known: dict[str, Any], key: str) -> None:
    """Raises UserError unless the config has the key's section, or the key if it has no section."""
    *sections, name = key.split('.')
    at: Any = known
    for section in sections:
        at = at.get(section)
        if not isinstance(at, dict):
            raise UserError(f'--grid: the config has no section {section!r} ({key})')
    if not sections and name not in known:
        raise UserError(f'--grid: the config has no key {key!r}')


def name_of(values: dict[str, Any]) -> str:
    """Returns a folder name with the values; a hash is added if the text had to be changed."""
    text = ','.join(f'{key}={_text(value)}' for key, value in values.items())
    # Replace characters that are not safe in a file name.
    safe = re.sub(r'[^\w.=,+-]', '_', text)[:120]
    return safe if safe == text else f'{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}'


def _text(value: Any) -> str:
    """Returns a value as part of a name; (3, 3, 3) becomes 3-3-3."""
    flat = isinstance(value, tuple) and len(value) > 1 and all(isinstance(v, int) for v in value)
    return '-'.join(map(str, value)) if flat else str(value)


def _value(text: str) -> tuple[str, Any]:
    """Returns a value as text for the command line, without outer quotes, and as a Python value."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text, text
    return (value if isinstance(value, str) else text), value


def _split(text: str, separator: str) -> list[str]:
    """Splits a text at separators outside brackets and quotes; empty parts are dropped."""
    # Track the open quote and the depth of brackets character by character.
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
