"""Parser of op strings such as `'decode|random_resized_crop(224)|my_ops:blur(sigma=2)'`.

Arguments are Python literals, positional or by keyword. No code in an op string is executed.
"""

import ast
import functools
import inspect
import math
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vision.core.errors import UserError, unknown


class Op(NamedTuple):
    """One op of an op string.

    Attributes:
      name: name in the registry, or 'package.module:function' for a user-defined op.
      args: positional literal arguments.
      kwargs: keyword literal arguments.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        parts = [repr(a) for a in self.args] + [f'{k}={v!r}' for k, v in self.kwargs.items()]
        return f'{self.name}({", ".join(parts)})' if parts else self.name


# In Python 3.11 `ast.parse` in two threads may raise a SystemError (CPython issue 106905).
_PARSING = threading.Lock()


def parse(text: str) -> tuple[Op, ...]:
    """Parses an op string, whose ops are separated by bars; the empty string has no ops.

    Raises:
      UserError: an op is not of the form `name` or `name(literal, …, key=literal)`.
    """
    with _PARSING:
        return _parse(text)


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> tuple[Op, ...]:
    return tuple(_parse_op(part, text) for part in _split(text)) if text.strip() else ()


def arguments(op: Op, function: Callable) -> dict[str, Any]:
    """Returns the arguments of an op with defaults, except its image and random numbers."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.name not in ('image', 'rng')]
    bound = signature.replace(parameters=own).bind(*op.args, **op.kwargs)
    bound.apply_defaults()
    return bound.arguments


def check(ops: tuple[Op, ...], registry: Mapping[str, Callable], skip: int = 1) -> None:
    """Checks the names and arguments of all ops against a registry of functions.

    Args:
      ops: parsed ops.
      registry: functions by name.
      skip: number of leading parameters of a function that do not come from the op string, such as
        the image.

    Raises:
      UserError: an op is unknown, or an argument is missing, surplus, unknown or invalid.
    """
    for op in ops:
        if op.name not in registry:
            raise unknown('op', op.name, registry)
        check_arguments(op, registry[op.name], skip)


def check_arguments(op: Op, function: Callable, skip: int) -> None:
    """Checks an op's arguments against its function, without the first `skip` parameters.

    Raises:
      UserError: an argument is missing, surplus, unknown or invalid.
    """
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[skip:]
    # Let Python bind the arguments, for its error messages.
    try:
        bound = signature.replace(parameters=own).bind(*op.args, **op.kwargs)
    except TypeError as e:
        usage = f'{op.name}({", ".join(str(p) for p in own)})'
        raise UserError(f'op {str(op)!r}: {e}. Write it as {usage}.') from None
    defaults = {p.name: p.default for p in own if p.default is not p.empty}
    _check_values(str(op), defaults | bound.arguments)


def _check_values(op: str, arguments: dict[str, Any]) -> None:
    """Raises UserError if a value violates its rule in `RULES`.

    None, and arguments without a rule, are left to the op.
    """
    for name, value in arguments.items():
        fits, what = RULES.get(name, (lambda v: True, ''))
        if value is not None and not fits(value):
            raise UserError(f'op {op!r}: {name}={value!r} must be {what}')
    # Two integer bounds are lengths in pixels; all other bounds are factors.
    if {'low', 'high'} <= set(arguments):
        low, high = arguments['low'], arguments['high']
        both = _whole(1) if isinstance(low, int) and isinstance(high, int) else _number(0, _LARGEST)
        if not (both(low) and both(high) and 0 < low <= high):
            raise UserError(
                f'op {op!r}: low={low!r} and high={high!r} must be above 0, and low at most high'
            )


def check_choice(op: str, argument: str, value: str, known: tuple[str, ...]) -> None:
    """Raises UserError if an argument's value is not one of the known choices."""
    if value not in known:
        raise unknown(f'{argument} of {op}', value, known)


def _split(text: str) -> list[str]:
    """Splits an op string at the bars that are not inside quotes."""
    parts, quote = [''], ''
    for char in text:
        # Quotes of the other kind inside quotes are plain characters.
        if char in '\'"':
            quote = '' if quote == char else quote or char
        if char == '|' and not quote:
            parts.append('')
        else:
            parts[-1] += char
    return parts


def _parse_op(part: str, text: str) -> Op:
    """Parses one op; `text` is the whole op string, for messages."""
    part = part.strip()

    def fail(why: str) -> UserError:
        return UserError(
            f'op string {text!r}: {part!r} {why}; write name or name(literal, key=literal)'
        )

    # Take off the module of a user-defined op; the rest is a Python expression.
    own = re.match(r'(\w+\.)*\w+:', part)
    module = own[0] if own else ''
    try:
        node = ast.parse(part[len(module) :], mode='eval').body
    except (SyntaxError, ValueError):
        raise fail('is not an op') from None
    # An op without arguments.
    if isinstance(node, ast.Name):
        return Op(module + node.id, (), {})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise fail('is not an op')
    if any(k.arg is None for k in node.keywords):
        raise fail('has ** arguments')
    try:
        # Arguments must be literals, which are evaluated without running code.
        args = tuple(ast.literal_eval(a) for a in node.args)
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (ValueError, TypeError, SyntaxError):
        raise fail('has an argument that is not a literal') from None
    return Op(module + node.func.id, args, kwargs)


_LARGEST = 10_000  # pixels on a side


# Each of the functions below returns a test of a value.


def _number(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high


def _whole(low: int, high: float = _LARGEST) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and _number(low, high)(v)


def _pair(low: float, high: float) -> Callable[[Any], bool]:
    def fits(v: Any) -> bool:
        return (
            isinstance(v, tuple | list)
            and len(v) == 2
            and all(map(_number(low, high), v))
            and 0 < v[0] <= v[1]
        )

    return fits


def _sizes(v: Any) -> bool:
    return isinstance(v, tuple | list) and len(v) > 0 and all(map(_whole(1), v))


_SIDE = (_whole(1), f'a whole number of pixels, 1 … {_LARGEST}')
_NOT_NEGATIVE = (_number(0, 1e6), 'a number, at least 0')
_PIXEL = (_number(0, 255), 'a number in 0 … 255')

# The test and the description of each argument; a name means the same in every op.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    'height': _SIDE,
    'width': _SIDE,
    'size': _SIDE,
    'scales': (_sizes, f'a tuple of whole numbers of pixels, 1 … {_LARGEST}'),
    'pixels': (_whole(0), 'a whole number of pixels, at least 0'),
    'padding': (_whole(0), 'a whole number of pixels, at least 0'),
    'channels': (lambda v: v in (1, 3) and _whole(1)(v), '1 or 3'),
    'antialias': (lambda v: isinstance(v, bool), 'True or False'),
    'value': _PIXEL,
    'fill': _PIXEL,
    'probability': (_number(0, 1), 'a number in 0 … 1'),
    'area': (_pair(0, 1), 'two numbers in 0 … 1, the smaller first'),
    'ratio': (_pair(0, 1e6), 'two numbers above 0, the smaller first'),
    'sigma': (lambda v: _number(0, 1000)(v) and v > 0, 'a number above 0'),
    'degrees': (_number(-360, 360), 'a number of degrees'),
    'strength': _NOT_NEGATIVE,
    'std': _NOT_NEGATIVE,
    'alpha': _NOT_NEGATIVE,
    'scale': _NOT_NEGATIVE,
    'shear': (_number(-1e6, 1e6), 'a number'),
    'shift': _NOT_NEGATIVE,
    'num_layers': (_whole(1, 16), 'a whole number, 1 … 16'),
    'magnitude': (_whole(0, 30), 'a whole number, 0 … 30'),
}
