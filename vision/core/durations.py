"""Parsers for durations ('20 epochs'), shares of a data set ('10%') and folds ('2/5')."""

import math
import re
from fractions import Fraction

from vision.core.errors import UserError

_UNITS = ('steps', 'epochs', 'examples')


def parse(text: str, key: str = 'duration') -> tuple[float, str]:
    """Parses '20 epochs' into (20.0, 'epochs').

    Args:
      text: a number and one of steps, epochs, examples; the singular is accepted, too.
      key: the config key, for messages.

    Raises:
      UserError: the text has another form, or the number is negative or not finite.
    """
    match = re.fullmatch(r'\s*([-+.\deE_]+)\s*([a-z]+)\s*', str(text))
    # The plural of the unit.
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
    """Converts a duration to an exact number of training steps.

    A batch may span two epochs, so with 1,000 examples and batch size 300 '1 epochs' is 3 1/3 steps
    and '3 epochs' is 10.

    Args:
      text: a duration, in the form that `parse` reads.
      batch_size: size of the global batch.
      num_examples: size of the training split.
      key: the config key, for messages.
    """
    value, unit = parse(text, key)
    examples = {'steps': batch_size, 'epochs': num_examples, 'examples': 1}[unit]
    return Fraction(value) * examples / batch_size


def to_steps(text: str, batch_size: int, num_examples: int, key: str = 'duration') -> int:
    """Converts a duration to whole training steps, rounded to the nearest (halves up).

    The arguments are those of `steps_in`.

    Returns:
      Steps ≥ 0; at least 1 for any duration above 0.
    """
    steps = steps_in(text, batch_size, num_examples, key)
    return max(1, math.floor(steps + Fraction(1, 2))) if steps > 0 else 0


class Every:
    """The steps at which a periodic event is due: `every.due(step)`.

    The k-th event is k periods after the start, rounded once. Rounding errors therefore do not add
    up, and an event with the period '1 epochs' is due at the end of the last epoch.
    """

    def __init__(self, period: Fraction):
        """Takes the period in steps from `steps_in`; with a period below 1 every step is due."""
        # Keep integers, because `due` runs at every step and arithmetic with Fraction is slow.
        self._numerator, self._denominator = period.numerator, period.denominator

    def due(self, step: int) -> bool:
        """True if the event is due after `step` steps (≥ 1)."""
        return self._times(step) > self._times(step - 1)

    def after(self, step: int) -> int:
        """Returns the first step after `step` (≥ 0) at which the event is due."""
        k = self._times(step) + 1
        due = (2 * k * self._numerator + self._denominator) // (2 * self._denominator)
        return max(due, step + 1)

    def _times(self, step: int) -> int:
        """The number of events up to and including a step."""
        # The k-th event is at floor(k · period + 1/2), the rounding of `to_steps`, so that
        # ceil((step + 1/2) / period) - 1 events are at or before this step.
        if not step:
            return 0
        return -(-(2 * step + 1) * self._denominator // (2 * self._numerator)) - 1


def parse_share(value: int | float | str | None, name: str) -> int | float | None:
    """Parses a part of a data set: '10%', 0.1 and '0.1' are fractions, 500 and '500' examples.

    Raises:
      UserError: the value has another form, is negative, or is the whole data set.
    """
    if value is None:
        return None
    text = str(value).strip()
    try:
        number = float(text.removesuffix('%')) / (100 if text.endswith('%') else 1)
    except ValueError:
        number = math.nan
    # A number below 1 or with a percent sign is a fraction; a whole number counts examples.
    whole = number.is_integer() and not text.endswith('%')
    if not (0 <= number < 1 or (whole and number > 0)) or isinstance(value, bool):
        raise UserError(
            f"{name}={value!r} must be a share, such as '10%' or 0.1, or a number of examples"
        )
    return int(number) if whole else number


def parse_fold(value: str, name: str = 'data.fold') -> tuple[int, int]:
    """Parses a fold of cross-validation: '2/5' is (2, 5), part 2 of 5, counted from 1.

    Raises:
      UserError: the text has another form.
    """
    match = re.fullmatch(r'\s*([0-9]+)\s*/\s*([0-9]+)\s*', str(value))
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts or parts < 2:
        raise UserError(f"{name}={value!r} must be one of two or more parts, such as '2/5'")
    return part, parts
