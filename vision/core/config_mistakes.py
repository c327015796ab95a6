"""Mistakes in --config=FILE[:ARGUMENT] and its overrides, explained in one line."""

import inspect
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from vision.core.config_keys import KEYS
from vision.core.errors import UserError, nearest


def explained(error: Exception, argv: Sequence[str]) -> str:
    """Turns an error of reading the flags into one line that the user can mend.

    Args:
      error: that was raised; one that does not concern --config gives its own text.
      argv: the command line.
    """
    if isinstance(error, flags.UnrecognizedFlagError):
        return _explain_unknown(error.flagname)
    text = str(error.args[0]) if error.args else repr(error)
    value = _value_of_config(argv)
    if value is None:
        return text
    file, _, argument = value.partition(':')
    path = Path(file)
    if not path.is_file():
        known = [str(p) for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
        guess = nearest(str(path), known)
        return f'--config: there is no file {path}' + (f'; did you mean {guess}?' if guess else '')
    try:
        module = SourceFileLoader('config', file).load_module()
    except Exception as e:
        return f'{file} cannot be read: {type(e).__name__}: {e}'
    accepts = len(inspect.signature(module.get_config).parameters)
    if argument and not accepts:
        return f'--config={value}: {file} takes no argument (what stands behind the colon)'
    try:
        config = module.get_config(*([argument] if argument else []))
    except UserError as e:
        return str(e)
    known = _leaves(config)
    for override in argv:
        key = override.lstrip('-').split('=', 1)[0]
        if key.startswith('config.') and key.removeprefix('config.') not in known:
            guess = nearest(key.removeprefix('config.'), known)
            hint = f'; did you mean --config.{guess}?' if guess else ''
            return f'--{key}: the config has no such key{hint}'
    return text.strip().splitlines()[-1]


def _explain_unknown(name: str) -> str:
    """Says which flag, or key of a config, an unknown flag may stand for: --config.optimizer.lr for --lr."""
    keys = []
    for holder in ('config', 'eval'):
        if holder in flags.FLAGS:
            value = flags.FLAGS[holder].value
            known = _leaves(value) if isinstance(value, ConfigDict) else []
            known += [key.name for key in KEYS] if holder == 'config' else []
            keys += [f'{holder}.{key}' for key in dict.fromkeys(known)]
    # A key of that name in any section, or what is spelt most like it.
    meant = [key for key in keys if key.endswith(f'.{name}')]
    if not meant and (guess := nearest(name, [*flags.FLAGS, *keys])):
        meant = [guess]
    if not meant and (guess := nearest(name, [key.rpartition('.')[2] for key in keys])):
        meant = [key for key in keys if key.endswith(f'.{guess}')]
    hint = f'; did you mean {" or ".join(f"--{key}" for key in meant[:3])}?' if meant else ''
    return f'there is no flag --{name}{hint or "; see --help"}'


def _value_of_config(argv: Sequence[str]) -> str | None:
    """The value of `--config=VALUE` or `--config VALUE`."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        name, _, value = word.lstrip('-').partition('=')
        if word.startswith('-') and name == 'config':
            return value or following
    return None


def _leaves(config: Any, prefix: str = '') -> list[str]:
    """The names of all keys, 'a.b.c', sections included."""
    names = []
    for key in config.keys():  # noqa: SIM118 - iterating over the config reads its placeholders
        value = config.get(key)
        names.append(prefix + key)
        names += _leaves(value, f'{prefix}{key}.') if hasattr(value, 'keys') else []
    return names
