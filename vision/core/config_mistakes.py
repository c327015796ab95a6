"""One-line explanations of mistakes in --config=FILE[:ARGUMENT] and its overrides."""

import inspect
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from vision.core.cli import read_literal
from vision.core.config import plain
from vision.core.config_keys import KEYS
from vision.core.errors import UserError, in_a_line, meant, nearest, similar
from vision.core.help import own_flags


def explained(error: Exception, argv: Sequence[str]) -> str:
    """Explains an error of flag parsing in one line that tells the user what to change.

    Args:
      error: the exception; if it does not concern --config, its own text is returned.
      argv: the command line.
    """
    # A flag that does not exist.
    if isinstance(error, flags.UnrecognizedFlagError):
        return _explain_unknown(error.flagname)
    text = str(error.args[0]) if error.args else repr(error)
    value = _value_of_config(argv)
    if value is None:
        return text
    # Does the file exist, and does it define get_config?
    file, _, argument = value.partition(':')
    path = Path(file)
    if not path.is_file():
        # The name of a config without its folder or suffix is a common mistake.
        full = Path('configs', path.name).with_suffix('.py')
        hint = (
            f'; did you mean {full}{value[len(file) :]}?' if full.is_file() else similar(str(path))
        )
        return f'--config: there is no file {path}{hint}'
    try:
        get_config = runpy.run_path(file).get('get_config')
    except Exception as e:
        return f'{file} cannot be read: {in_a_line(e)}'
    if not callable(get_config):
        return f'{file} has no function get_config'
    accepts = len(inspect.signature(get_config).parameters)
    if argument and not accepts:
        return f'--config={value}: {file} takes no argument; leave out the text after the colon'
    # Does get_config return a config?
    try:
        config = get_config(*([argument] if argument else []))
    except UserError as e:
        return str(e)
    except Exception as e:
        return f'{file} cannot be read: {in_a_line(e)}'
    if not isinstance(config, ConfigDict):
        return (
            f'{file}: get_config must return a ConfigDict, not {type(config).__name__}; '
            'start from default_config()'
        )
    # The file is valid, so the mistake is in an override: in its value or in its key.
    if isinstance(error, flags.IllegalFlagValueError):
        given = re.match(r'flag --config\.([\w.]+)=(.*?): ', text, re.DOTALL)
        return explain_value(config, *given.groups()) if given else text
    known = _leaves(config)
    # Find the override whose key does not exist.
    for override in argv:
        key = override.lstrip('-').split('=', 1)[0]
        if key.startswith('config.') and key.removeprefix('config.') not in known:
            guess = nearest(key.removeprefix('config.'), known)
            hint = f'; did you mean --config.{guess}?' if guess else ''
            return f'--{key}: the config has no such key{hint}'
    return text.strip().splitlines()[-1]


def explain_value(config: Mapping[str, Any], key: str, text: str) -> str:
    """Explains why a key cannot have a value from the command line.

    The reason is taken from the key's declaration, or from its present value.
    """
    declared, read = next((k for k in KEYS if k.name == key), None), read_literal(text)
    try:
        if declared is not None:
            declared.check(read)
    except UserError as e:
        # Show a number as the user wrote it: 1e3, not 1000.0.
        return str(e) if isinstance(read, str) else str(e).replace(f'={read!r}', f'={text}', 1)
    # Look up the present value of the key.
    value: Any = config
    for name in re.split(r'[.[]', key):
        value = value.get(name) if isinstance(value, ConfigDict) else value
    if isinstance(value, ConfigDict):
        return (
            f"{key}={text}: {key} is a section; write {{'name': …}}, or set a single key, "
            f'such as {key}.name=…'
        )
    return f'{key}={text} cannot be set: {key.partition("[")[0]} is {plain(value)!r}'


def _explain_unknown(name: str) -> str:
    """Suggests a known flag or config key for an unknown flag.

    For example, it suggests --config.optimizer.lr for --lr.
    """
    # Collect the keys of all config flags, and the flags of this project.
    keys = []
    for holder in ('config', 'eval'):
        if holder in flags.FLAGS:
            value = flags.FLAGS[holder].value
            known = _leaves(value) if isinstance(value, ConfigDict) else []
            known += [key.name for key in KEYS] if holder == 'config' else []
            keys += [f'{holder}.{key}' for key in dict.fromkeys(known)]
    ours = [flag.name for flag in own_flags()]
    # Suggest the closest names.
    guesses = ' or '.join(f'--{key}' for key in meant(name, [*ours, *keys])[:3])
    hint = f'; did you mean {guesses}?' if guesses else ''
    return f'there is no flag --{name}{hint or "; see --help"}'


def _value_of_config(argv: Sequence[str]) -> str | None:
    """Returns the value of `--config=VALUE` or `--config VALUE`."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        name, _, value = word.lstrip('-').partition('=')
        if word.startswith('-') and name == 'config':
            return value if '=' in word else following
    return None


def _leaves(config: Any, prefix: str = '') -> list[str]:
    """Returns the names of all keys as 'a.b.c', including sections."""
    names = []
    for key in config.keys():  # noqa: SIM118 - iterating over the config reads its placeholders
        value = config.get(key)
        names.append(prefix + key)
        names += _leaves(value, f'{prefix}{key}.') if hasattr(value, 'keys') else []
    return names
