"""Tables of metrics for the terminal."""

from typing import Any

from rich.table import Table


def metrics_table(rows: dict[str, dict[str, Any]], title: str) -> Table:
    """A table of evaluations, one row each.

    Args:
      rows: metrics as `evaluate` returns them, by what was evaluated.
      title: above the table.
    """
    table = Table(title=title, title_justify='left')
    table.add_column('split')
    for name in ('top-1', 'top-5', 'loss', 'examples'):
        table.add_column(name, justify='right')
    for name, m in rows.items():
        top5 = '–' if m['top5'] is None else f'{m["top5"]:.2%}'
        table.add_row(name, f'{m["top1"]:.2%}', top5, f'{m["loss"]:.4f}', f'{m["count"]:,}')
    return table
