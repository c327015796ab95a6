"""JSON as every parser reads it: without the NaN and Infinity that Python's `json` writes by itself."""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """JSON text. A number that is not finite becomes null, with the reason beside it.

    The reason is in the object that holds the number, under the key `not_finite`:
    `{"loss": NaN, "rates": [1.0, Infinity]}` is written as
    `{"loss": null, "rates": [1.0, null], "not_finite": {"loss": "NaN", "rates[1]": "Infinity"}}`.

    Args:
      value: what `json.dumps` takes.
      options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value, '', {}), allow_nan=False, **options)


def _finite(value: Any, name: str, reasons: dict[str, str]) -> Any:
    """The value without such numbers; `reasons` gets theirs, by name in the object that holds them."""
    if isinstance(value, Mapping):
        own: dict[str, str] = {}
        made = {key: _finite(v, str(key), own) for key, v in value.items()}
        return made | {'not_finite': own} if own else made
    if isinstance(value, list | tuple):
        return [_finite(v, f'{name}[{i}]', reasons) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        reasons[name] = 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
        return None
    return value
