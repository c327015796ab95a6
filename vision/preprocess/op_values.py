"""What an op's arguments may be, by their names, which mean the same in every op."""

import math
from collections.abc import Callable
from typing import Any

from vision.core.errors import UserError

_LARGEST = 10_000  # pixels on a side


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


def check(op: str, arguments: dict[str, Any]) -> None:
    """Checks what stands in an op string; an argument without a rule is its op's own business.

    Args:
      op: the op as written, for messages.
      arguments: by the names of the op's parameters; None stands for one that is left out.

    Raises:
      UserError: a value that makes no sense.
    """
    for name, value in arguments.items():
        fits, what = RULES.get(name, (lambda v: True, ''))
        if value is not None and not fits(value):
            raise UserError(f'op {op!r}: {name}={value!r} must be {what}')
    if {'low', 'high'} <= set(arguments):
        low, high = arguments['low'], arguments['high']
        both = _whole(1) if isinstance(low, int) and isinstance(high, int) else _number(0, _LARGEST)
        if not (both(low) and both(high) and 0 < low <= high):
            raise UserError(f'op {op!r}: low={low!r} and high={high!r} must be above 0, low first')
