"""Tables for `experiments.models`, yielded row by row as the models are counted."""

from collections.abc import Iterator, Sequence

from vision.core.errors import UserError
from vision.core.text import json_text
from vision.models.registry import MODELS
from vision.models.summary import Summary, summarise


def describe(
    names: Sequence[str],
    format: str = 'table',
    input_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
) -> Iterator[str]:
    """Yields the lines of a table: the stages of one model, or one row per model.

    Args:
      names: at most one name; none for all models.
      format: 'table' or 'json'.
      input_size, channels, num_classes: None for the paper's.

    Raises:
      UserError: an unknown name, several names, or an input that the model does not support.
    """
    if len(names) > 1:
        raise UserError(f'give one model, not {len(names)}: {" ".join(names)}')
    options = (input_size, channels, num_classes)
    if names:
        summary = summarise(names[0], *options)
        yield from ([json_text(summary.as_dict(), indent=2)] if format == 'json' else _one(summary))
        return
    rows = (_try(name, options) for name in MODELS)
    yield from _all_as_json(rows) if format == 'json' else _all(rows)


def _try(name: str, options: tuple) -> Summary | dict[str, str]:
    """Returns the summary of a model, or the error if the model does not support the input."""
    try:
        return summarise(name, *options)
    except UserError as e:
        return {'model': name, 'error': str(e)}


def _all_as_json(rows: Iterator[Summary | dict[str, str]]) -> Iterator[str]:
    """Yields a JSON list, element by element."""
    separator = '['
    for row in rows:
        value = row.as_dict() if isinstance(row, Summary) else row
        yield separator + '\n  ' + json_text(value, indent=2).replace('\n', '\n  ')
        separator = ','
    yield ']'


def _all(rows: Iterator[Summary | dict[str, str]]) -> Iterator[str]:
    """Yields the table of all models."""
    width = max(map(len, MODELS))
    yield f'{"model":{width}}  {"input":13}  {"parameters":>12}  {"with aux":>11}  {"GMACs":>8}  {"activations":>11}'
    for row in rows:
        if isinstance(row, Summary):
            aux = row.parameters_with_aux
            with_aux = f'{aux:,}' if aux != row.parameters else ''
            yield (
                f'{row.name:{width}}  {_shape(row.input_shape):13}  {row.parameters:12,}  {with_aux:>11}  '
                f'{_gmacs(row):>8}  {row.activations:11,}'
            )
        else:
            yield f'{row["model"]:{width}}  does not support this input'


def _one(summary: Summary) -> Iterator[str]:
    """Yields the stages and the cost of one model."""
    stages = {'input': summary.input_shape, **summary.stages}
    width = max(map(len, stages))
    yield summary.name
    for name, shape in stages.items():
        yield f'  {name:{width}}  {_shape(shape)}'
    yield f'parameters   {summary.parameters:,}'
    if summary.parameters_with_aux != summary.parameters:
        yield f'             {summary.parameters_with_aux:,} with auxiliary heads'
    yield f'GMACs        {_gmacs(summary)}'
    yield f'activations  {summary.activations:,}'


def _gmacs(summary: Summary) -> str:
    gmacs = summary.macs / 1e9
    return f'{gmacs:.3f}' if gmacs >= 0.01 else f'{gmacs:.6f}'


def _shape(shape: Sequence[int]) -> str:
    return ' x '.join(str(n) for n in shape)
