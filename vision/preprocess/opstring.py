"""Op strings: `'decode|random_resized_crop(224)|flip_lr'`, read into named calls.

Arguments are Python literals, positional or by keyword; nothing is evaluated.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vision.core.errors import UserError, unknown
from vision.preprocess import op_values


class Op(NamedTuple):
    """One op of an op string: its name and its literal arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        parts = [repr(a) for a in self.args] + [f'{k}={v!r}' for k, v in self.kwargs.items()]
        return f'{self.name}({", ".join(parts)})' if parts else self.name


def parse(text: str) -> tuple[Op, ...]:
    """Reads an op string; the empty string has no ops.

    Raises:
      UserError: what stands between two bars is not `name` or `name(literal, …, key=literal)`.
    """
    return tuple(_parse_op(part, text) for part in _split(text)) if text.strip() else ()


def format_ops(ops: tuple[Op, ...]) -> str:
    """The op string of these ops: `parse(format_ops(ops)) == ops`."""
    return '|'.join(str(op) for op in ops)


def arguments(op: Op, function: Callable) -> dict[str, Any]:
    """What an op gives its function, defaults filled in; without its image and random numbers."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.name not in ('image', 'rng')]
    bound = signature.replace(parameters=own).bind(*op.args, **op.kwargs)
    bound.apply_defaults()
    return bound.arguments


def check(ops: tuple[Op, ...], registry: Mapping[str, Callable], skip: int = 1) -> None:
    """Checks every op's name and arguments against a registry of functions.

    Args:
      ops: as `parse` returns them.
      registry: by name; a function's first `skip` parameters are the image and its like.
      skip: how many parameters do not come from the op string.

    Raises:
      UserError: an unknown op, a missing, surplus or unknown argument, or one that makes no sense.
    """
    for op in ops:
        if op.name not in registry:
            raise unknown('op', op.name, registry)
        signature = inspect.signature(registry[op.name])
        own = list(signature.parameters.values())[skip:]
        try:
            bound = signature.replace(parameters=own).bind(*op.args, **op.kwargs)
        except TypeError as e:
            usage = f'{op.name}({", ".join(str(p) for p in own)})'
            raise UserError(f'op {str(op)!r}: {e}. It is {usage}.') from None
        defaults = {p.name: p.default for p in own if p.default is not p.empty}
        op_values.check(str(op), defaults | bound.arguments)


def _split(text: str) -> list[str]:
    """Splits at the bars that are not inside quotes: an argument may be a string with a bar."""
    parts, quote = [''], ''
    for char in text:
        if char in '\'"':
            quote = '' if quote == char else quote or char
        if char == '|' and not quote:
            parts.append('')
        else:
            parts[-1] += char
    return parts


def _parse_op(part: str, text: str) -> Op:
    def fail(why: str) -> UserError:
        return UserError(
            f'op string {text!r}: {part.strip()!r} {why}; write name or name(literal, key=literal)'
        )

    try:
        node = ast.parse(part.strip(), mode='eval').body
    except (SyntaxError, ValueError):
        raise fail('is not an op') from None
    if isinstance(node, ast.Name):
        return Op(node.id, (), {})
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise fail('is not an op')
    if any(k.arg is None for k in node.keywords):
        raise fail('has ** arguments')
    try:
        args = tuple(ast.literal_eval(a) for a in node.args)
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (ValueError, TypeError, SyntaxError):
        raise fail('has an argument that is not a literal') from None
    return Op(node.func.id, args, kwargs)
