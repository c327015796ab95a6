"""Amounts as people say them: durations ('20 epochs', '450000 steps'), shares of a data set ('10%'), folds ('2/5')."""

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


def parse_share(value: int | float | str | None, name: str) -> int | float | None:
    """Reads what of a data set is meant: '10%', 0.1 and '0.1' are fractions, 500 and '500' examples.

    Raises:
      UserError: it is none of these, negative, or all of the data set.
    """
    if value is None:
        return None
    text = str(value).strip()
    try:
        number = float(text.removesuffix('%')) / (100 if text.endswith('%') else 1)
    except ValueError:
        number = math.nan
    whole = number.is_integer() and not text.endswith('%')
    if not (0 <= number < 1 or (whole and number > 0)) or isinstance(value, bool):
        raise UserError(
            f"{name}={value!r} must be a share, as '10%' or 0.1, or a number of examples"
        )
    return int(number) if whole else number


def parse_fold(value: str, name: str = 'data.fold') -> tuple[int, int]:
    """Reads which of how many parts is meant: '2/5' is (2, 5), counted from 1.

    Raises:
      UserError: it is no such text.
    """
    match = re.fullmatch(r'\s*([0-9]+)\s*/\s*([0-9]+)\s*', str(value))
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts or parts < 2:
        raise UserError(f"{name}={value!r} must be one of two or more parts, as '2/5'")
    return part, parts
