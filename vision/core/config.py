"""The config of an experiment: its defaults, checks, and form on disk; comparing two.

A file in `configs/` starts from `default_config()`, sets what its paper sets and adds nothing but
arguments of what it names: the model, the source, the optimizer, the schedule, the loss. The keys are
declared in `vision.core.config_keys`.
"""

import enum
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError, placeholder

from vision.core.config_keys import (
    EVAL_KEYS,
    KEYS,
    OPEN,
    SGD,
    Key,
    declared,
    own_arguments,
    python_type,
)
from vision.core.errors import UserError, unknown
from vision.core.text import json_text

# What may differ when a run goes on in its workdir: stopping, logging and keeping; also `evals`.
MAY_DIFFER = (
    'training.stop_after',
    'training.patience',
    'training.log_every',
    'training.keep',
    'data.max_corrupt',
    'training.shard',  # where arrays lie, as the number of devices may change, too
)


# Where the data are, if the run knows them by what they are (`vision.data.identity`).
PLACES = ('data.path', 'data.data_dir')


class Config(ConfigDict):
    """A ConfigDict whose section `update` has its name, where ConfigDict has a method."""

    @property
    def update(self) -> ConfigDict:  # type: ignore[override]
        """The section `update`."""
        return self['update']


def default_config() -> ConfigDict:
    """Returns the config that every experiment starts from."""
    config = _defaults(KEYS, Config(type_safe=False))
    config.optimizer.update(SGD)
    return config


def default_eval() -> ConfigDict:
    """Returns an entry of `config.evals`, and what `--eval.KEY=VALUE` sets: the run's own test split."""
    return _defaults(EVAL_KEYS, ConfigDict(type_safe=False))


def _defaults(keys: Iterable[Key], config: ConfigDict) -> ConfigDict:
    """Fills a config, whose types ConfigDict does not check: `check` does, and knows more of them."""
    for key in keys:
        if key.section and key.section not in config:
            config[key.section] = ConfigDict(type_safe=False)
        section = config[key.section] if key.section else config
        section[key.leaf] = placeholder(python_type(key.kind)) if key.optional else key.default
    return config


def check(config: Mapping[str, Any]) -> None:
    """Checks what can be checked before any data is read.

    Raises:
      UserError: a key missing or too many, a value of the wrong type or out of its range.
    """
    values = plain(config)
    _check_finite(values, 'config')
    sections = list(dict.fromkeys(key.section for key in KEYS if key.section))
    top = [*declared(''), *sections]
    for name in values:
        if name not in top:
            raise unknown('config key', name, top, [key.name for key in KEYS])
    for name in sections:
        if not isinstance(values.get(name), dict):
            raise UserError(f'config.{name} is missing; start from default_config()')
        if name not in OPEN and (surplus := own_arguments(name, values[name])):
            every = [key.name for key in KEYS]
            raise unknown(f'key of config.{name}', next(iter(surplus)), declared(name), every)
    for key in KEYS:
        section = values[key.section] if key.section else values
        if key.leaf in section:
            key.check(section[key.leaf])
        elif key.required or key.section not in OPEN:
            raise UserError(
                f'config.{key.name} is missing; set single keys, as in --config.{key.name}=…'
            )
    for name, entry in values['evals'].items():
        complete_eval(entry, f'config.evals.{name}')
    training = values['training']
    if training['polyak_from'] is not None and training['ema_decay']:
        raise UserError('training.ema_decay and training.polyak_from: only one can be averaged by')
    repeats = values['data'].get('repeats', 1)
    if repeats > training['batch_size']:
        raise UserError(f'data.repeats={repeats} must be at most training.batch_size')


def _check_finite(value: Any, name: str) -> None:
    """Raises UserError for a number that JSON has no word for."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_finite(inner, f'{name}.{key}')
    elif isinstance(value, tuple):
        for inner in value:
            _check_finite(inner, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f'{name} is {value}, which no JSON has: give a number, or None where it may be'
        )


def complete_eval(entry: Mapping[str, Any], name: str = '--eval') -> ConfigDict:
    """An entry of `config.evals` with its defaults.

    Args:
      entry: what differs from `default_eval()`.
      name: what it is called in messages.

    Raises:
      UserError: a key that entries do not have, or a value that makes no sense.
    """
    if not re.fullmatch(r'[\w.-]+', name):  # files are called by it
        raise UserError(f'{name!r}: the names of evaluations have letters, digits, _ and - only')
    values, known = plain(entry, name), {key.leaf: key for key in EVAL_KEYS}
    if not isinstance(values, dict):
        raise UserError(f"{name}={values!r} must be a dict, as {{'split': 'validation'}}")
    for key, value in values.items():
        if key not in known:
            raise unknown(f'key of {name}', key, known)
        known[key]._replace(name=f'{name}.{key}').check(value)
    if values.get('protocol') and values.get('ops'):
        raise UserError(f'{name}: give either a protocol or ops, not both')
    return ConfigDict({key.leaf: key.default for key in EVAL_KEYS} | values)


def resolve(config: Mapping[str, Any]) -> ConfigDict:
    """Returns a checked copy in plain values, complete, with absolute paths.

    An open section that was replaced as a whole gets the defaults of its declared keys. An empty text is
    None where None is a value. With absolute paths a run finds its data from any folder.

    Raises:
      UserError: as `check` does.
    """
    values = plain(config)
    for key in KEYS:
        section = values.get(key.section) if key.section else values
        if isinstance(section, dict):
            if key.section in OPEN and not key.required:
                section.setdefault(key.leaf, key.default)
            if key.optional and section.get(key.leaf) == '':
                section[key.leaf] = None
    check(values)
    for data in (values['data'], *(e.get('data', {}) for e in values['evals'].values())):
        for name in ('path', 'data_dir'):
            if data.get(name):
                data[name] = os.path.abspath(os.path.expanduser(data[name]))
    source = values['init_from']
    if source and os.path.exists(os.path.expanduser(source)):
        values['init_from'] = os.path.abspath(os.path.expanduser(source))
    return Config(values, type_safe=False)


def plain(value: Any, name: str = 'config') -> Any:
    """A config or a value of it in what JSON holds: dicts, tuples, numbers, text, None.

    NumPy's and JAX's scalars become numbers (np.float32(0.1) is 0.1), their arrays tuples, dtypes their names, paths
    text and members of an Enum their values.

    Raises:
      UserError: anything else, by its name.
    """
    if isinstance(value, ConfigDict):
        values = {}
        for key in value.keys():  # noqa: SIM118 - iterating over it would read the values, too
            try:
                values[key] = value[key]
            except RequiredValueError:
                raise UserError(
                    f'{name}.{key} must be set: the config file leaves it open'
                ) from None
        value = values
    if isinstance(value, dict):
        return {key: plain(v, f'{name}.{key}') for key, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(plain(v, name) for v in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value, name)
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    import numpy as np

    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type):  # np.float32, jnp.bfloat16
        if issubclass(value, np.generic) or isinstance(getattr(value, 'dtype', None), np.dtype):
            return np.dtype(value).name
    elif hasattr(value, 'tolist'):
        array = np.asarray(value)
        if 'float' in array.dtype.name:  # 0.1, not 0.10000000149011612
            array = np.array([float(str(x)) for x in array.ravel()]).reshape(array.shape)
        if array.dtype.kind in 'biufUO':
            return plain(array.tolist(), name)
    elif isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UserError(
        f'{name} is a {type(value).__name__}: a config has numbers, text, tuples and sections; '
        "functions and classes are named, as 'package.module:name'"
    )


def to_json(config: Mapping[str, Any]) -> str:
    """The config as JSON, keys in their order."""
    return json_text(plain(config), indent=2) + '\n'


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote, here or in an older version: `from_plain` of its values."""
    return from_plain(json.loads(text))


def from_plain(recorded: dict[str, Any]) -> ConfigDict:
    """Makes a config of recorded values, of this or an older version.

    Lists become tuples again. Sections and keys that are newer than the record get their defaults.
    """
    values = plain(recorded)
    if values.get('data', {}).get('source') in ('folder', 'list'):
        values['data'].setdefault('rules', 1)  # no image that was learned from may be tested
    for key in KEYS:
        section = values.setdefault(key.section, {}) if key.section else values
        section.setdefault(key.leaf, key.default)
    if isinstance(values['lr_factors'], dict):  # once a section
        values['lr_factors'] = tuple(values['lr_factors'].items())
    if values['schedule'].get('metric') not in (None, 'loss'):  # once top-1 by name
        values['schedule']['metric'] = None
    return Config(values, type_safe=False)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], may_differ: Collection[str] = MAY_DIFFER
) -> list[str]:
    """Lists, a phrase a key, what two configs differ in, but for what may differ."""
    before, after = _flatten(plain(old)), _flatten(plain(new))
    phrases = []
    for key in dict.fromkeys([*before, *after]):
        free = key in may_differ or key.startswith('evals.')
        if not free and before.get(key) != after.get(key):
            phrases.append(f'{key} is {before.get(key)!r} there and {after.get(key)!r} here')
    return phrases


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
