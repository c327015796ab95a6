"""Table, records and pictures of the comparison of methods that find copies."""

from pathlib import Path
from typing import Any

import numpy as np

from vision.core.text import json_text
from vision.search import transformations

_COLUMNS = ('micro_ap', 'recall@p90', 'found', 'precision', 'recall')
_TITLES = ('micro-AP', 'recall at 90 %', 'found', 'precision, tuned', 'recall, tuned')


def write(rows: list[dict[str, Any]], output: Path, about: dict[str, Any]) -> None:
    """Writes `table.md`, `summary.json` and `table.png` of the rows of `copies.compare`."""
    (output / 'summary.json').write_text(json_text({**about, 'rows': rows}, indent=1) + '\n')
    (output / 'table.md').write_text(table(rows))
    draw(rows).savefig(output / 'table.png', dpi=110, bbox_inches='tight')


def table(rows: list[dict[str, Any]]) -> str:
    """Returns two tables in Markdown: all methods, and the transformations of each."""
    lines = [_line(['method', *_TITLES, 'CPU seconds']), '|---' * (2 + len(_COLUMNS)) + '|']
    for row in rows:
        lines.append(
            _line([row['method'], *(_figure(row[c]) for c in _COLUMNS), str(row['seconds'])])
        )
    lines += ['', 'Share found with a higher score than any wrong answer, by transformation:', '']
    lines += [_line(['transformation', *(str(i) for i in range(1, len(rows) + 1))])]
    lines += ['|---' * (1 + len(rows)) + '|']
    for i, name in enumerate(transformations.NAMES):
        found = [_figure(row['transformations'][i]['found']) for row in rows]
        lines.append(_line([name, *found]))
    lines += ['', '; '.join(f'{i} {row["method"]}' for i, row in enumerate(rows, 1)), '']
    return '\n'.join(lines)


def draw(rows: list[dict[str, Any]]) -> Any:
    """Draws the micro-AP of each method and transformation as a heat map."""
    from matplotlib.figure import Figure

    values = np.array(
        [[t['micro_ap'] for t in row['transformations']] + [row['micro_ap']] for row in rows], float
    )
    figure = Figure(figsize=(14, 1.5 + 0.4 * len(rows)))
    axes = figure.subplots()
    axes.imshow(values, vmin=0, vmax=1, cmap='viridis', aspect='auto')
    axes.set_xticks(
        range(values.shape[1]), [*transformations.NAMES, 'all'], rotation=60, ha='right'
    )
    axes.set_yticks(range(len(rows)), [row['method'] for row in rows])
    for (y, x), value in np.ndenumerate(values):
        colour = 'white' if value < 0.6 else 'black'
        axes.text(
            x,
            y,
            f'{value:.2f}'[1 - (value >= 0.995) :],
            ha='center',
            va='center',
            color=colour,
            fontsize=7,
        )
    axes.set_title('micro-AP by transformation')
    return figure


def _line(words: list[str]) -> str:
    return '| ' + ' | '.join(words) + ' |'


def _figure(value: float | None) -> str:
    return '–' if value is None else f'{value:.3f}'
