"""The keys of a config with their meaning, range and value: `--explain`, and docs/configs.md."""

import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Column, Table

from vision.core import config as config_lib
from vision.core.config_keys import (
    EVAL_KEYS,
    KEYS,
    OPEN,
    Key,
    declared,
    describe,
    find,
    own_arguments,
    type_hints,
)
from vision.core.errors import unknown

# Of open sections: the registry, and how many arguments come before the config's.
_REGISTRIES = {
    'task': ('vision.task.base', 'TASKS', 1),
    'data': ('vision.data.registry', 'SOURCES', 1),
    'loss': ('vision.task.losses', 'LOSSES', 2),
    'update': ('vision.training.step', 'UPDATES', 3),
    'optimizer': ('vision.training.optimizer', 'OPTIMIZERS', 0),
    'schedule': ('vision.training.schedules', 'SCHEDULES', 3),
}
_REQUIRED = 'required'


def explain(config: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Lists keys of a config, and the arguments of what its open sections name.

    Args:
      config: as a file in `configs/` returns it.
      what: a section, a key, or 'all'.

    Returns:
      A row a key: `key`, `value`, `default`, `type` (with the range, in words) and `meaning`. Keys without
      a default have 'required' there; what is not known of a function's argument is ''.

    Raises:
      UserError: there is no such section or key, or the config or a name in it makes no sense.
    """
    sections = {key.section or key.name for key in KEYS}
    if what not in {'all', *sections, *(key.name for key in KEYS)}:
        raise unknown('section of the config', what, {'all', *sections})
    values = config_lib.resolve(config).to_dict()
    rows = []
    for key in KEYS:
        if what in ('all', key.section, key.name):
            section = values[key.section] if key.section else values
            rows.append(_row(key, section[key.leaf]))
    if what in ('all', 'evals'):
        rows += [
            _row(key._replace(name=f'evals.NAME.{key.name}'), key.default) for key in EVAL_KEYS
        ]
    for section in OPEN:
        if what in ('all', section):
            rows += _argument_rows(section, values[section])
    return rows


def explain_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of `explain` for a terminal."""
    table = Table(
        Column('key', no_wrap=True), Column('value', overflow='fold'), 'default', 'meaning'
    )
    for row in rows:
        is_default = row['value'] == row['default']
        words = f'{row["meaning"]} ({row["type"]})'.removesuffix(' ()').strip()
        default = 'yes' if is_default else _text(row['default'])
        table.add_row(row['key'], _text(row['value']), default, words)
    return table


def markdown() -> str:
    """The text of docs/configs.md."""
    lines = [
        '# Keys of a config',
        '',
        'Made from `vision/core/config_keys.py` by `vision.studies.config_help.markdown`. `python -m '
        'experiments.train --config=… --explain=SECTION` prints the same for a config, with its values and',
        'the arguments of the model, source, optimizer, schedule, loss and update that it names. '
        '`--config.KEY=VALUE` overrides a key; `None` is a value of each key whose type says so.',
    ]
    for section in dict.fromkeys(key.section for key in KEYS):
        lines += ['', f'## {section or "The whole experiment"}', '']
        lines += _markdown_table([key for key in KEYS if key.section == section])
        if section in OPEN:
            name = 'source' if section == 'data' else 'name'
            lines += ['', f'All other keys are arguments of what `{section}.{name}` names.']
    lines += ['', '## An entry of evals', '', *_markdown_table(EVAL_KEYS)]
    return '\n'.join(lines) + '\n'


def _markdown_table(keys: typing.Iterable[Key]) -> Iterator[str]:
    yield '| key | default | type | meaning |'
    yield '|---|---|---|---|'
    for key in keys:
        cells = (f'`{key.name}`', f'`{key.default!r}`', key.describe(), key.meaning)
        yield '| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |'


def _row(key: Key, value: Any) -> dict[str, Any]:
    return {
        'key': key.name, 'value': value, 'default': key.default,
        'type': key.describe(), 'meaning': key.meaning,
    }  # fmt: skip


def _argument_rows(section: str, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the arguments of what a section names."""
    function, skipped = _named(section, values['source' if section == 'data' else 'name'])
    given, hints = own_arguments(section, values), type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
    for parameter in parameters:
        if parameter.name in (*declared(section), *_not_of_the_config(section)):
            continue
        required = parameter.default is parameter.empty
        # A dtype or a function is shown by its name.
        default = getattr(parameter.default, '__name__', parameter.default)
        default = _REQUIRED if required else default
        hint = hints.get(parameter.name)
        yield {
            'key': f'{section}.{parameter.name}',
            'value': given.get(parameter.name, default),
            'default': default,
            'type': describe(hint) if _is_simple(hint) else '',
            'meaning': _documented(function, parameter.name),
        }


def _named(section: str, name: str) -> tuple[Callable, int]:
    """The object that an open section names, and how many of its arguments are not the config's."""
    if section == 'model':
        from vision.models.registry import find_model

        return find_model(name), 0
    module, registry, skipped = _REGISTRIES[section]
    return find(section, name, getattr(importlib.import_module(module), registry)), skipped


def _not_of_the_config(section: str) -> tuple[str, ...]:
    """Arguments that come from elsewhere: of Flax, or of our own code."""
    from vision.training.optimizer import OWN_ARGUMENTS

    return OWN_ARGUMENTS if section == 'optimizer' else ('parent', 'name')


def _documented(function: Callable, name: str) -> str:
    """The first sentence that a docstring has on an argument, in Google's form."""
    while isinstance(function, functools.partial):
        function = function.func
    pattern = rf'^( *)(?:\w+, )*\*{{0,2}}{name}(?:, \w+)*(?: \(.*?\))?: (.*(?:\n\1 +.*)*)'
    match = re.search(pattern, inspect.getdoc(function) or '', re.MULTILINE)
    text = ' '.join(match[2].split()) if match else ''
    return re.split(r'(?<=\.) ', text)[0].removesuffix('.')


def _is_simple(hint: Any) -> bool:
    """True if a type is one that configs can hold."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return True
    if origin is typing.Annotated:
        return _is_simple(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType, tuple):
        return all(part is ... or _is_simple(part) for part in typing.get_args(hint))
    return hint in (bool, int, float, str, type(None))


def _text(value: Any) -> str:
    return value if value == _REQUIRED else repr(value)
