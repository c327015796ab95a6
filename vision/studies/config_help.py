"""Documentation of config keys: the tables of `--explain` and of docs/configs.md."""

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

# For each open section: the module and name of its registry, and the number of leading arguments of
# a registered function that are not config keys, because the code passes them.
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
    """Lists the keys of a config, including the arguments of the functions that it names.

    Args:
      config: a config as a file in `configs/` returns it.
      what: a section, a key, or 'all'.

    Returns:
      One row for each key: `key`, `value`, `default`, `type` (with the range, in words) and
      `meaning`. The default is 'required' for a key without one. `type` and `meaning` are '' if a
      function does not annotate or document its argument.

    Raises:
      UserError: the section or key does not exist, or the config is invalid.
    """
    sections = {key.section or key.name for key in KEYS}
    if what not in {'all', *sections, *(key.name for key in KEYS)}:
        raise unknown('section of the config', what, {'all', *sections})
    values = config_lib.resolve(config).to_dict()
    # List the declared keys, the keys of an entry of `evals`, and the arguments of named functions.
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
    """Returns the rows of `explain` as a table for a terminal."""
    table = Table(
        Column('key', no_wrap=True), Column('value', overflow='fold'), 'default', 'meaning'
    )
    for row in rows:
        # 'meaning (type)', without empty brackets.
        is_default = row['value'] == row['default']
        words = f'{row["meaning"]} ({row["type"]})'.removesuffix(' ()').strip()
        default = 'yes' if is_default else _text(row['default'])
        table.add_row(row['key'], _text(row['value']), default, words)
    return table


def markdown() -> str:
    """Returns the text of docs/configs.md."""
    lines = [
        '# Keys of a config',
        '',
        'Generated from `vision/core/config_keys.py` by `vision.studies.config_help.markdown`.',
        '`python -m experiments.train --config=… --explain=SECTION` prints the same table for a',
        'config, with its values and the arguments of the model, source, optimizer, schedule, loss',
        'and update that it names. `--config.KEY=VALUE` overrides a key. A key accepts `None` if its',
        'type says so.',
    ]
    for section in dict.fromkeys(key.section for key in KEYS):
        lines += ['', f'## {section or "The whole experiment"}', '']
        lines += _markdown_table([key for key in KEYS if key.section == section])
        if section in OPEN:
            name = 'source' if section == 'data' else 'name'
            lines += [
                '',
                f'All other keys are arguments of the function or class that `{section}.{name}` names.',
            ]
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
    """Yields a row for each argument of the function or class that a section names."""
    # The values that the config gives, and the annotations of the function's parameters.
    function, skipped = _named(section, values['source' if section == 'data' else 'name'])
    given, hints = own_arguments(section, values), type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
    for parameter in parameters:
        if parameter.name in (*declared(section), *_not_of_the_config(section)):
            continue  # declared keys have a row already
        required = parameter.default is parameter.empty
        # Show a dtype or a function by its name.
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
    """Returns the function that a section names, and how many of its arguments the code passes."""
    if section == 'model':
        from vision.models.registry import find_model

        return find_model(name), 0
    module, registry, skipped = _REGISTRIES[section]
    return find(section, name, getattr(importlib.import_module(module), registry)), skipped


def _not_of_the_config(section: str) -> tuple[str, ...]:
    """Returns the arguments that Flax or the code of this project passes."""
    from vision.training.optimizer import OWN_ARGUMENTS

    return OWN_ARGUMENTS if section == 'optimizer' else ('parent', 'name')


def _documented(function: Callable, name: str) -> str:
    """Returns the first sentence on an argument in a Google-style docstring, or ''."""
    while isinstance(function, functools.partial):
        function = function.func
    # An entry may name several arguments, 'a, b: …', and may have several indented lines.
    pattern = rf'^( *)(?:\w+, )*\*{{0,2}}{name}(?:, \w+)*(?: \(.*?\))?: (.*(?:\n\1 +.*)*)'
    match = re.search(pattern, inspect.getdoc(function) or '', re.MULTILINE)
    text = ' '.join(match[2].split()) if match else ''
    return re.split(r'(?<=\.) ', text)[0].removesuffix('.')


def _is_simple(hint: Any) -> bool:
    """Returns True for a type whose values a config can hold."""
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
