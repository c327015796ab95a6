"""Arguments that come from a config: known by name, and of the type that is annotated."""

import importlib
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vision.core.errors import UserError, unknown


def find(kind: str, name: str, known: Mapping[str, Callable | str]) -> Callable:
    """Returns what a config names: an entry of a registry, or a user's own.

    Args:
      kind: 'model', 'update', …, for the message.
      name: a key of `known`, or 'package.module:name'.
      known: the registry; an entry 'package.module:name' is imported when it is asked for.

    Raises:
      UserError: there is no such entry, module or name, or it cannot be called.
    """
    entry = known.get(name, name)
    if not isinstance(entry, str):
        return entry
    if ':' not in entry:
        raise unknown(kind, name, known)
    name = entry
    module_name, _, attribute = name.partition(':')
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as e:
        raise UserError(f'{kind} {name!r}: cannot import {module_name!r} ({e})') from e
    except AttributeError as e:
        raise UserError(f'{kind} {name!r}: module {module_name!r} has no {attribute!r}') from e
    if not callable(found):
        raise UserError(f'{kind} {name!r} is no class or function but {type(found).__name__}')
    return found


def check(what: str, function: Callable, known: list[str], arguments: Mapping[str, Any]) -> None:
    """Checks keyword arguments before a function gets them.

    Args:
      what: the function's name for the message: "schedule 'step'".
      function: whose annotations count.
      known: the arguments that may be given.
      arguments: by name.

    Raises:
      UserError: an argument that is not known, or of another type.
    """
    hints = type_hints(function)
    for key, value in arguments.items():
        if key not in known:
            raise unknown(f'argument of {what}', key, known)
        if key in hints and not fits(value, hints[key]):
            raise UserError(f'{what}: {key}={value!r} is not {describe(hints[key])}')


def type_hints(function: Callable) -> dict[str, Any]:
    """The annotated types of a function or class, by argument."""
    while isinstance(function, partial):
        function = function.func
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a user's own class may annotate as it likes
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the annotated type, for the types that configs can hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        parts = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(value) == len(parts) and all(map(fits, value, parts))
    hint = getattr(hint, '__supertype__', hint)  # of a NewType
    if hint is dict:
        return isinstance(value, dict)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if hint is type(None):
        return value is None
    return True


def describe(hint: Any) -> str:
    """'one of 1, 2' or 'of type bool': what `fits` asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return 'one of ' + ', '.join(repr(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(describe(a) for a in arguments)
    if origin is tuple:
        return f'a tuple of {getattr(arguments[0], "__name__", arguments[0])}'
    if hint is type(None):
        return 'None'
    return f'of type {getattr(hint, "__name__", hint)}'
