"""Durations as people say them: '20 epochs', '450000 steps', '1e7 examples'."""

import math
import re
from fractions import Fraction

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


def steps_in(text: str, batch_size: int, num_examples: int, key: str = 'duration') -> Fraction:
    """Turns a duration into training steps, exactly.

    Epochs follow one another without a gap, so '1 epochs' of 1,000 examples at batch 300 is 3 1/3
    steps, and '3 epochs' is 10.

    Args:
      text: as `parse` reads it.
      batch_size: of the global batch.
      num_examples: of the training split.
      key: the config's name of it, for the message.
    """
    value, unit = parse(text, key)
    examples = {'steps': batch_size, 'epochs': num_examples, 'examples': 1}[unit]
    return Fraction(value) * examples / batch_size


def to_steps(text: str, batch_size: int, num_examples: int, key: str = 'duration') -> int:
    """Turns a duration into whole training steps, rounded to the nearest (a half up).

    Arguments as for `steps_in`.

    Returns:
      Steps ≥ 0; at least 1 for any duration above 0.
    """
    steps = steps_in(text, batch_size, num_examples, key)
    return max(1, math.floor(steps + Fraction(1, 2))) if steps > 0 else 0


class Every:
    """The steps at which something is due that happens each so often: `every.due(step)`.

    The k-th time is k durations after the start, rounded once: errors do not add up, and what is
    due '1 epochs' apart is due at the end of the last epoch.
    """

    def __init__(self, period: Fraction):
        """Takes the period in steps, as `steps_in` returns it; below 1 it is due at every step."""
        # As whole numbers: every step asks, and arithmetic with fractions is slow.
        self._numerator, self._denominator = period.numerator, period.denominator

    def due(self, step: int) -> bool:
        """True if it is due when `step` steps (≥ 1) are done."""
        return self._times(step) > self._times(step - 1)

    def _times(self, step: int) -> int:
        # The k-th time is at floor(k · period + 1/2), as `to_steps` rounds: those up to this step
        # are ceil((step + 1/2) / period) - 1.
        if not step:
            return 0
        return -(-(2 * step + 1) * self._denominator // (2 * self._numerator)) - 1
