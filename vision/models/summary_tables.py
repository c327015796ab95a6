"""The tables that `experiments.models` prints."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vision.core import strict_json
from vision.core.errors import UserError
from vision.models import MODELS
from vision.models.summary import Summary, summarise


def describe(
    names: Sequence[str],
    format: str = 'table',
    input_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
) -> str:
    """Returns the figures of one model stage by stage, or of all models, as a table or JSON.

    Args:
      names: at most one name; none for all models.
      format: 'table' or 'json'.
      input_size, channels, num_classes: the paper's where None.

    Raises:
      UserError: an unknown name, more than one, or an input that a named model cannot take.
    """
    if len(names) > 1:
        raise UserError(f'one model at a time, not {len(names)}: {" ".join(names)}')
    options = (input_size, channels, num_classes)
    if names:
        summary = summarise(names[0], *options)
        return strict_json.dumps(summary.as_dict(), indent=2) if format == 'json' else _one(summary)
    rows = [_try(name, options) for name in MODELS]
    if format == 'json':
        return strict_json.dumps(
            [r.as_dict() if isinstance(r, Summary) else r for r in rows], indent=2
        )
    return _all(rows)


def _try(name: str, options: tuple) -> Summary | dict[str, str]:
    """In a list, a model that cannot take the input says so in its row."""
    try:
        return summarise(name, *options)
    except UserError as e:
        return {'model': name, 'error': str(e)}


def _all(rows: Sequence[Summary | dict[str, str]]) -> str:
    table = Table('model', 'input')
    for title in ('parameters', 'with aux', 'GMACs', 'activations'):
        table.add_column(title, justify='right')
    for row in rows:
        if isinstance(row, Summary):
            aux = row.parameters_with_aux
            table.add_row(
                row.name,
                _shape(row.input_shape),
                f'{row.parameters:,}',
                f'{aux:,}' if aux != row.parameters else '',
                _gmacs(row),
                f'{row.activations:,}',
            )
        else:
            table.add_row(row['model'], 'cannot take this input')
    return _render(table)


def _one(summary: Summary) -> str:
    table = Table('stage', 'shape', title=summary.name)
    table.add_row('input', _shape(summary.input_shape))
    for name, shape in summary.stages.items():
        table.add_row(name, _shape(shape))
    lines = [f'parameters   {summary.parameters:,}']
    if summary.parameters_with_aux != summary.parameters:
        lines.append(f'             {summary.parameters_with_aux:,} with auxiliary heads')
    lines += [f'GMACs        {_gmacs(summary)}', f'activations  {summary.activations:,}']
    return _render(table) + '\n' + '\n'.join(lines)


def _gmacs(summary: Summary) -> str:
    gmacs = summary.macs / 1e9
    return f'{gmacs:.3f}' if gmacs >= 0.01 else f'{gmacs:.6f}'


def _shape(shape: Sequence[int]) -> str:
    return ' x '.join(str(n) for n in shape)


def _render(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    return '\n'.join(line.rstrip() for line in out.getvalue().splitlines())
