"""Tables of metrics for the terminal."""

from typing import Any

from rich.table import Table


def metrics_table(rows: dict[str, dict[str, Any]], title: str) -> Table:
    """A table of evaluations, one row each.

    Args:
      rows: metrics as `evaluate` returns them, by what was evaluated; where there are `intervals`,
        they are shown.
      title: above the table.
    """
    table = Table(title=title, title_justify='left')
    table.add_column('split')
    for name in ('top-1', 'top-5', 'loss', 'examples'):
        table.add_column(name, justify='right')
    for name, m in rows.items():
        table.add_row(
            name,
            _percent(m['top1'], m.get('intervals', {}).get('top1')),
            _percent(m['top5'], None),
            '–' if m['loss'] is None else f'{m["loss"]:.4f}',
            f'{m["count"]:,}',
        )
    return table


def _percent(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return '–'
    return f'{value:.2%}' + (
        f' ({interval[0]:.1%} … {interval[1]:.1%})' if interval is not None else ''
    )
