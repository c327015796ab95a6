"""Models by name. Adding one is one file and one line here; a user's own needs neither."""

import importlib
import inspect
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vision.core.errors import UserError, nearest, unknown
from vision.models import lenet

MODELS: dict[str, Callable[..., nn.Module]] = {
    'lenet5_1998': lenet.LeNet5Original,
    'lenet5': lenet.LeNet5,
}


def create_model(
    name: str, num_classes: int = 1000, dtype: Any = jnp.float32, **kwargs: Any
) -> nn.Module:
    """Returns the model called `name`, unbound: no parameters yet.

    Args:
      name: a key of `MODELS`, or 'package.module:Class' for a model of one's own: a linen module
        (or a function that returns one) with fields `num_classes` and `dtype`, whose
        `__call__(images, train)` returns (logits float32 [B, K], endpoints).
      num_classes: the number of logits.
      dtype: what is computed in, float32 or bfloat16 (or its name); parameters are float32.
      **kwargs: the model's own arguments: its dataclass fields.

    Raises:
      UserError: an unknown name or argument, or a value that the argument cannot have.
    """
    factory = find_model(name)
    arguments = {'num_classes': num_classes, 'dtype': _read_dtype(dtype), **kwargs}
    _check_arguments(name, factory, arguments)
    model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise UserError(f'model {name!r} is no Flax module but {type(model).__name__}')
    return model


def find_model(name: str) -> Callable[..., nn.Module]:
    """Returns the class or function called `name`, as `create_model` names them."""
    if name in MODELS:
        return MODELS[name]
    if ':' not in str(name):
        raise unknown('model', name, MODELS)
    module_name, _, attribute = name.partition(':')
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as e:
        raise UserError(f'model {name!r}: cannot import {module_name!r} ({e})') from e
    except AttributeError as e:
        raise UserError(f'model {name!r}: module {module_name!r} has no {attribute!r}') from e
    if not callable(found):
        raise UserError(f'model {name!r} is no class or function but {type(found).__name__}')
    return found


def _read_dtype(dtype: Any) -> Any:
    try:
        read = jnp.dtype(dtype)
    except TypeError as e:
        raise UserError(f'dtype {dtype!r} is no type of number: use float32 or bfloat16') from e
    if not jnp.issubdtype(read, jnp.floating):
        raise UserError(f'dtype {read} cannot be computed in: use float32 or bfloat16')
    return read


def _check_arguments(name: str, factory: Callable, arguments: dict[str, Any]) -> None:
    parameters = dict(inspect.signature(factory).parameters)
    known = [key for key in parameters if key not in ('parent', 'name')]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _type_hints(factory)
    for key, value in arguments.items():
        if key not in known and not takes_any:
            guess = nearest(key, known)
            hint = f'; did you mean {guess!r}?' if guess else ''
            raise UserError(
                f'model {name!r} has no argument {key!r}{hint}. Known: {", ".join(sorted(known))}.'
            )
        if key in hints and not _fits(value, hints[key]):
            raise UserError(f'model {name!r}: {key}={value!r} is not {_describe(hints[key])}')
    if isinstance(arguments['num_classes'], int) and arguments['num_classes'] < 1:
        raise UserError(f'model {name!r}: num_classes={arguments["num_classes"]} is not 1 or more')


def _type_hints(factory: Callable) -> dict[str, Any]:
    while isinstance(factory, partial):
        factory = factory.func
    try:
        return typing.get_type_hints(factory)
    except (NameError, TypeError):  # a user's own class may annotate as it likes
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the annotated type, for the types that configs can hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    return True


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return 'one of ' + ', '.join(repr(a) for a in typing.get_args(hint))
    return f'of type {getattr(hint, "__name__", hint)}'
