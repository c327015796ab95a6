"""Durations as people say them: '20 epochs', '450000 steps', '1e7 examples'."""

import math
import re

from vision.core.errors import UserError

_UNITS = ('steps', 'epochs', 'examples')


def parse(text: str, key: str = 'duration') -> tuple[float, str]:
    """Reads '20 epochs' into (20.0, 'epochs').

    Args:
      text: a number and one of steps, epochs, examples; the singular is read too.
      key: the config's name of it, for the message.

    Raises:
      UserError: not of that form, negative or not finite.
    """
    match = re.fullmatch(r'\s*([-+.\deE_]+)\s*([a-z]+)\s*', str(text))
    unit = match and (match[2] if match[2].endswith('s') else match[2] + 's')
    try:
        if not match or unit not in _UNITS:
            raise ValueError
        value = float(match[1])
    except ValueError:
        raise UserError(
            f"{key}: {text!r} is not a duration; write '20 epochs', '5000 steps' or '1e6 examples'"
        ) from None
    if not math.isfinite(value) or value < 0:
        raise UserError(f'{key}: {text!r} must not be negative or infinite')
    return value, unit


def to_steps(text: str, batch_size: int, num_examples: int, key: str = 'duration') -> int:
    """Turns a duration into whole training steps, rounded to the nearest.

    Epochs follow one another without a gap, so '1 epochs' of 1,000 examples at batch 300 is 3.33
    steps, and '3 epochs' exactly 10.

    Args:
      text: as `parse` reads it.
      batch_size: of the global batch.
      num_examples: of the training split.
      key: the config's name of it, for the message.

    Returns:
      Steps ≥ 0; at least 1 for any duration above 0.
    """
    value, unit = parse(text, key)
    examples = {'steps': batch_size, 'epochs': num_examples, 'examples': 1}[unit]
    steps = value if unit == 'steps' else value * examples / batch_size
    return max(1, math.floor(steps + 0.5)) if value > 0 else 0
