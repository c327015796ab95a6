"""The config of an experiment: defaults, checks, JSON form and comparison.

A file in `configs/` starts from `default_config()` and sets the values of its paper. It may add
only arguments of the model, source, optimizer, schedule, loss or other function that it names. The
keys are declared in `vision.core.config_keys`.
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

# Keys that may change when a run is resumed: stopping, logging and which checkpoints are kept.
# `evals` may change, too.
MAY_DIFFER = (
    'training.stop_after',
    'training.patience',
    'training.log_every',
    'training.steps_per_call',
    'training.keep',
    'data.max_corrupt',
    'training.shard',  # only the layout of arrays; the number of devices may change, too
)


# Paths of the data. They may change if the run can identify the data by their contents
# (`vision.data.identity`).
PLACES = ('data.path', 'data.data_dir')


class Config(ConfigDict):
    """A ConfigDict whose attribute `update` is the section, not the method of ConfigDict."""

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
    """Returns the default entry of `config.evals`, which evaluates the run's own test split.

    `--eval.KEY=VALUE` sets its keys.
    """
    return _defaults(EVAL_KEYS, ConfigDict(type_safe=False))


def _defaults(keys: Iterable[Key], config: ConfigDict) -> ConfigDict:
    """Fills a config with defaults.

    ConfigDict's type checks are off, because `check` is stricter.
    """
    for key in keys:
        if key.section and key.section not in config:
            config[key.section] = ConfigDict(type_safe=False)
        section = config[key.section] if key.section else config
        section[key.leaf] = placeholder(python_type(key.kind)) if key.optional else key.default
    return config


def check(config: Mapping[str, Any]) -> None:
    """Checks the keys and values of a config, as far as possible without reading data.

    Raises:
      UserError: a key is missing or unknown, or a value has the wrong type or is out of range.
    """
    values = plain(config)
    _check_finite(values, 'config')
    # Check the names of sections and keys. Open sections may have further keys.
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
    # Check the values of all declared keys.
    for key in KEYS:
        section = values[key.section] if key.section else values
        if key.leaf in section:
            key.check(section[key.leaf])
        elif key.required or key.section not in OPEN:
            raise UserError(f'config.{key.name} is missing; set it with --config.{key.name}=…')
    for name, entry in values['evals'].items():
        complete_eval(entry, f'config.evals.{name}')
    # Check for values that exclude one another.
    training = values['training']
    if training['polyak_from'] is not None and training['ema_decay']:
        raise UserError('training.ema_decay and training.polyak_from: only one of them can be set')
    repeats = values['data'].get('repeats', 1)
    if repeats > training['batch_size']:
        raise UserError(f'data.repeats={repeats} must be at most training.batch_size')


def _check_finite(value: Any, name: str) -> None:
    """Raises UserError for NaN and infinite numbers, which JSON cannot hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_finite(inner, f'{name}.{key}')
    elif isinstance(value, tuple):
        for inner in value:
            _check_finite(inner, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f'{name} is {value}, which JSON cannot hold: give a finite number, or None if allowed'
        )


def complete_eval(entry: Mapping[str, Any], name: str = '--eval') -> ConfigDict:
    """Returns a checked entry of `config.evals`, completed with the defaults.

    Args:
      entry: the keys that differ from `default_eval()`.
      name: the entry's name in messages.

    Raises:
      UserError: a key is unknown or a value is invalid.
    """
    if not re.fullmatch(r'[\w.-]+', name):  # the name becomes part of file names
        raise UserError(
            f'{name!r}: the name of an evaluation may have only letters, digits, . _ and -'
        )
    # Check each key by its declaration.
    values, known = plain(entry, name), {key.leaf: key for key in EVAL_KEYS}
    if not isinstance(values, dict):
        raise UserError(f"{name}={values!r} must be a dict, such as {{'split': 'validation'}}")
    for key, value in values.items():
        if key not in known:
            raise unknown(f'key of {name}', key, known)
        known[key]._replace(name=f'{name}.{key}').check(value)
    if values.get('protocol') and values.get('ops'):
        raise UserError(f'{name}: give either a protocol or ops, not both')
    # Add the defaults.
    return ConfigDict({key.leaf: key.default for key in EVAL_KEYS} | values)


def resolve(config: Mapping[str, Any]) -> ConfigDict:
    """Returns a checked and complete copy of a config, with plain values and absolute paths.

    An open section that was replaced as a whole gets the defaults of its declared keys. An empty
    string becomes None for keys that may be None. Absolute paths let a resumed run find its data
    from any working directory.

    Raises:
      UserError: the config is invalid (see `check`).
    """
    values = plain(config)
    # Fill in missing keys of open sections and normalise empty strings.
    for key in KEYS:
        section = values.get(key.section) if key.section else values
        if isinstance(section, dict):
            if key.section in OPEN and not key.required:
                section.setdefault(key.leaf, key.default)
            if key.optional and section.get(key.leaf) == '':
                section[key.leaf] = None
    check(values)
    # Make the paths of all data sets, of pretrained weights and of a teacher absolute.
    for data in (values['data'], *(e.get('data', {}) for e in values['evals'].values())):
        for name in ('path', 'data_dir'):
            if data.get(name):
                data[name] = os.path.abspath(os.path.expanduser(data[name]))
    for section, name in ((values, 'init_from'), (values['task'], 'teacher')):
        source = section.get(name)
        if isinstance(source, str) and os.path.exists(os.path.expanduser(source)):
            section[name] = os.path.abspath(os.path.expanduser(source))
    return Config(values, type_safe=False)


def plain(value: Any, name: str = 'config') -> Any:
    """Converts a config or a value to dicts, tuples, numbers, text and None, which JSON can hold.

    NumPy and JAX scalars become numbers (np.float32(0.1) becomes 0.1), arrays become tuples, dtypes
    their names, paths text and Enum members their values.

    Raises:
      UserError: a value of any other type, or a required value that is not set; names the key.
    """
    if isinstance(value, ConfigDict):
        values = {}
        for key in value.keys():  # noqa: SIM118 - iterating over it would read the values, too
            try:
                values[key] = value[key]
            except RequiredValueError:
                raise UserError(
                    f'{name}.{key} must be set: the config file gives it no value'
                ) from None
        value = values
    # Convert the values of containers.
    try:
        if isinstance(value, dict):
            return {key: plain(v, f'{name}.{key}') for key, v in value.items()}
        if isinstance(value, tuple | list):
            return tuple(plain(v, name) for v in value)
    except RecursionError:
        raise UserError(f'{name:.80}: the value contains itself, or is nested too deeply') from None
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value, name)
    # Subclasses of int, float and str, such as np.float64.
    for base in (int, float, str):
        if isinstance(value, base):
            return base(value)
    # NumPy and JAX values; import NumPy only if there are any.
    import numpy as np

    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type):  # np.float32, jnp.bfloat16
        if issubclass(value, np.generic) or isinstance(getattr(value, 'dtype', None), np.dtype):
            return np.dtype(value).name
    elif hasattr(value, 'tolist'):
        array = np.asarray(value)
        if 'float' in array.dtype.name:
            # Go through the shortest decimal form: 0.1 instead of 0.10000000149011612.
            array = np.array([float(str(x)) for x in array.ravel()]).reshape(array.shape)
        if array.dtype.kind in 'biufUO':
            return plain(array.tolist(), name)
    elif isinstance(value, os.PathLike):
        return os.fspath(value)
    raise UserError(
        f'{name} is a {type(value).__name__}: a config holds numbers, text, tuples and sections; '
        "give functions and classes by name, as 'package.module:name'"
    )


def to_json(config: Mapping[str, Any]) -> str:
    """Returns the config as JSON, with its keys in order."""
    return json_text(plain(config), indent=2) + '\n'


def from_json(text: str) -> ConfigDict:
    """Reads a config that `to_json` of this or an older version wrote."""
    return from_plain(json.loads(text))


def from_plain(recorded: dict[str, Any]) -> ConfigDict:
    """Makes a config from recorded values of this or an older version.

    Lists become tuples. Sections and keys that are newer than the record get their defaults.
    """
    values = plain(recorded)
    # Without this key the run used version 1 of the split rules. Version 2 would move images from
    # the training split to the test split.
    if values.get('data', {}).get('source') in ('folder', 'list'):
        values['data'].setdefault('rules', 1)
    # Fill in keys that are newer than the record.
    for key in KEYS:
        section = values.setdefault(key.section, {}) if key.section else values
        section.setdefault(key.leaf, key.default)
    # Convert two keys whose form has changed since.
    if isinstance(values['lr_factors'], dict):  # formerly a section
        values['lr_factors'] = tuple(values['lr_factors'].items())
    if values['schedule'].get('metric') not in (None, 'loss'):  # formerly the name of top-1
        values['schedule']['metric'] = None
    return Config(values, type_safe=False)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], may_differ: Collection[str] = MAY_DIFFER
) -> list[str]:
    """Describes each key in which two configs differ, except the keys that may differ."""
    # Compare key by key, in the order of the configs.
    before, after = _flatten(plain(old)), _flatten(plain(new))
    phrases = []
    for key in dict.fromkeys([*before, *after]):
        free = key in may_differ or key.startswith('evals.')
        if not free and before.get(key) != after.get(key):
            phrases.append(f'{key} is {before.get(key)!r} there and {after.get(key)!r} here')
    return phrases


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Flattens nested dicts: the key 'c' in 'b' in 'a' becomes 'a.b.c'."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
