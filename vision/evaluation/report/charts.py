"""Charts as SVG text: line charts and the reliability diagram."""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from vision.evaluation.figures import Reliability

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 14, 36
_POINTS = 400  # maximum number of points of a curve


class Curve(NamedTuple):
    """A line of a chart: its name, CSS class and points (x, y)."""

    name: str
    style: str
    points: list[tuple[float, float]]


def curves(records: Sequence[dict[str, Any]], metric: str) -> list[Curve]:
    """Returns one curve of a metric, such as 'loss', for each split that has it."""
    found = []
    for split in ('train', 'validation', 'test'):
        key = f'{split}/{metric}'
        points = [(r['step'], r[key]) for r in records if _finite(r.get(key))]
        # Thin out long curves, and keep the last point.
        stride = -(-len(points) // _POINTS) or 1
        if points:
            found.append(Curve(split, split, points[::-stride][::-1]))
    return found


def line_chart(
    title: str, lines: Sequence[Curve], percent: bool = False, x_name: str = 'step'
) -> str:
    """Draws a line chart over the step, or over a fraction called `x_name`.

    Returns '' if there are no points.
    """
    points = [p for line in lines for p in line.points]
    if not points:
        return ''
    # Choose the ticks. An accuracy or a fraction never needs an axis beyond 100 %.
    ys = [y for _, y in points]
    x_ticks = _ticks(0, max(x for x, _ in points))
    low, high = min(ys), max(ys)
    y_ticks = _ticks(low, max(low, min(1, high)) if percent and low <= 1 else high)
    if x_name != 'step':
        x_ticks = y_ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    # Draw the lines; short ones also get dots with tooltips.
    place = _Place(x_ticks, y_ticks)
    parts = [_axes(place, percent, x_name)]
    for line in lines:
        path = ' '.join(f'{place.x(x):.1f},{place.y(y):.1f}' for x, y in line.points)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        if len(line.points) <= 40 and x_name == 'step':
            parts += [
                f'<circle class="dot {line.style}" cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="2.5">'
                f'<title>{line.name}, step {x:,}: {_label(y, percent, 2)}</title></circle>'
                for x, y in line.points
            ]
    legend = ''.join(f'<span class="key {c.style}">{c.name}</span>' for c in lines)
    return _figure(title, legend, ''.join(parts))


def reliability_chart(bins: Reliability) -> str:
    """Draws the accuracy and the number of examples in each bin of confidence."""
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    place = _Place(ticks, ticks)
    n, most = len(bins.examples), max(int(bins.examples.max()), 1)
    parts = [_axes(place, True, 'confidence')]
    for i in range(n):
        count = int(bins.examples[i])
        if not count:
            continue
        # Draw a bar for the number of examples, and in front of it a bar for the accuracy.
        left, right = place.x(i / n), place.x((i + 1) / n)
        accuracy, confidence = float(bins.accuracy[i]), float(bins.confidence[i])
        tooltip_text = (
            f'{count:,} examples, confidence {confidence:.1%}, accuracy {accuracy:.1%}'
            if math.isfinite(accuracy)
            else f'{count:,} examples'
        )
        height = (_HEIGHT - _BOTTOM - _TOP) * count / most
        parts.append(
            f'<g><title>{tooltip_text}</title>'
            f'<rect class="count" x="{left:.1f}" width="{right - left:.1f}" '
            f'y="{_HEIGHT - _BOTTOM - height:.1f}" height="{height:.1f}"/>'
            f'<rect class="bar" fill-opacity="{0.3 + 0.6 * math.sqrt(count / most):.2f}" x="{left + 2:.1f}" width="{right - left - 4:.1f}" '
            f'y="{place.y(accuracy):.1f}" height="{place.y(0) - place.y(accuracy):.1f}"/></g>'
        )
    # Draw the diagonal of perfect calibration.
    corners = f'x1="{place.x(0)}" y1="{place.y(0)}" x2="{place.x(1)}" y2="{place.y(1)}"'
    parts.append(f'<line class="diagonal" {corners}/>')
    legend = (
        '<span class="key bar">accuracy</span><span class="key count">examples</span>'
        '<span class="key diagonal">perfectly calibrated</span>'
    )
    return _figure('Reliability diagram', legend, ''.join(parts))


class _Place:
    """Maps values to pixels."""

    def __init__(self, x_ticks: list[float], y_ticks: list[float]):
        self.x_ticks, self.y_ticks = x_ticks, y_ticks

    def x(self, value: float) -> float:
        """Returns the horizontal position of a value."""
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Returns the vertical position of a value."""
        # SVG's vertical axis points down.
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)


def _axes(place: _Place, percent: bool, x_name: str) -> str:
    """Draws grid lines, tick labels and the name of the horizontal axis."""
    parts = []
    for y in place.y_ticks:
        at = place.y(y)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'
        )
        label = _label(y, percent)
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{label}</text>')
    for x in place.x_ticks:
        label = f'{x:,.0f}' if x_name == 'step' else f'{x:.0%}'
        anchor = 'end' if x == place.x_ticks[-1] else 'middle'
        where = f'x="{place.x(x)}" y="{_HEIGHT - _BOTTOM + 16}"'
        parts.append(f'<text {where} text-anchor="{anchor}">{label}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{x_name}</text>')
    return ''.join(parts)


def _figure(title: str, legend: str, inside: str) -> str:
    """Wraps the SVG in a figure with title and legend."""
    name = html.escape(title)
    return (
        f'<figure><figcaption><b>{name}</b>{legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{inside}</svg></figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Returns four to eight round numbers that enclose both values."""
    # Round the step up to 1, 2 or 5 times a power of ten.
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step = next(step * m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _label(value: float, percent: bool, digits: int = 0) -> str:
    """Formats a value for an axis or a tooltip."""
    return (
        f'{100 * value:.{max(digits, 0 if value == round(value, 2) else 1)}f}%'
        if percent
        else f'{value:.4g}'
    )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
