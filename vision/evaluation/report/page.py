"""The report page: fills `template.html`, and escapes all text from data or users."""

import html
import re
import sys
from importlib import resources
from pathlib import Path

from vision.core import config as config_lib
from vision.core.config_keys import find
from vision.core.text import json_text
from vision.core.workdir import environment, read_records, write_text
from vision.evaluation.evals import Evaluation
from vision.evaluation.figures import RESAMPLES
from vision.evaluation.predictions import predictions_file, write_predictions
from vision.evaluation.report.charts import curves, line_chart
from vision.evaluation.run import Run
from vision.task.metrics import Metric, Selection


def write_report(runs: list[Run], evaluations: list[Evaluation]) -> Path | None:
    """Writes the report page and the predictions of each evaluation.

    Args:
      runs: the evaluated runs; an ensemble's report is in `report/ensemble` of the first run.
      evaluations: evaluations of the runs.

    Returns:
      The path of the page; None, with a line on stderr, if the workdir is not writable.
    """
    folder = runs[0].path / 'report'
    if len(runs) > 1:
        folder /= 'ensemble'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for evaluation in evaluations:
            path = predictions_file(folder, evaluation.saved_as)
            write_predictions(path, evaluation.predictions)
        write_text(folder / 'index.html', page(runs, evaluations))
    except OSError as e:
        print(f'{folder}: no report was written: {e.strerror or e}', file=sys.stderr)
        return None
    return folder / 'index.html'


def page(runs: list[Run], evaluations: list[Evaluation]) -> str:
    """Returns the whole page as HTML.

    Args:
      runs: the evaluated runs.
      evaluations: evaluations of the runs.
    """
    records = read_records(runs[0].path)
    # Training curves of the first run.
    charts = ''.join(
        line_chart(metric.title.capitalize(), curves(records, name), percent=metric.fraction)
        for name, metric in _charted(runs[0]).items()
    )
    names = ', '.join(run.path.name for run in runs)
    parts = {
        'title': html.escape(f'{names}: evaluation'),
        'subtitle': html.escape(_subtitle(runs)),
        'overview': _overview(evaluations),
        'curves': charts or '<p class="quiet">The workdir has no training records.</p>',
        'evaluations': ''.join(_evaluation(e) for e in evaluations),
        'config': html.escape(config_lib.to_json(runs[0].config)),
        'trained_with': html.escape(_environment_of(runs[0])),
        'evaluated_with': html.escape(json_text(environment(), indent=2)),
    }
    # Fill the {{placeholders}} of the template.
    template = resources.files(__package__).joinpath('template.html').read_text(encoding='utf-8')
    return re.sub(r'\{\{(\w+)\}\}', lambda match: parts[match[1]], template)


def _environment_of(run: Run) -> str:
    """Returns the environment that the run was trained in, as recorded."""
    path = run.path / 'environment.json'
    return path.read_text() if path.exists() else 'The training environment was not recorded.'


def _subtitle(runs: list[Run]) -> str:
    """Describes the runs: model, data, checkpoint and workdir."""
    said = [
        f'{run.config.model.name} trained on {run.config.data.source}, checkpoint of step {run.step:,}'
        for run in runs
    ]
    ensemble = f'Ensemble of {len(runs)} runs: ' if len(runs) > 1 else ''
    return ensemble + '; '.join(said) + f'. {runs[0].path}'


def _charted(run: Run) -> dict[str, Metric]:
    """Returns the metrics whose curves are drawn: the loss and the selection metric."""
    metrics = run.task.metrics
    chosen = Selection(run.task, run.config.training.best_by).name
    return {name: metrics[name] for name in ('loss', chosen) if name in metrics}


def _overview(evaluations: list[Evaluation]) -> str:
    """Returns a table of all evaluations if there are several."""
    if len(evaluations) < 2:
        return ''
    metrics = evaluations[0].predictions.task.metrics
    head = ''.join(f'<th class="n">{html.escape(m.title)}</th>' for m in metrics.values())
    rows = ''.join(
        f'<tr><td><a href="#{anchor(e)}">{html.escape(e.name)}</a></td>'
        + ''.join(f'<td class="n">{m.show(e.figures[k])}</td>' for k, m in metrics.items())
        + f'<td class="n">{e.figures["count"]:,}</td></tr>'
        for e in evaluations
    )
    return (
        '<div class="scroll"><table class="sortable"><thead><tr><th>evaluation</th>'
        f'{head}<th class="n">examples</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _evaluation(e: Evaluation) -> str:
    """Returns the section of one evaluation: its metrics and the task's own section."""
    # A task may define a section, named as 'module:function'.
    name = e.predictions.task.report
    section = None if name is None else find('report of a task', name, {})
    return f'''<section class="evaluation" id="{anchor(e)}">
<h2>{html.escape(e.name)} <small>{html.escape(_how(e))}</small></h2>
<div class="cards">{_cards(e)}</div>
<p class="quiet">Brackets: 95 % confidence intervals (bootstrap over examples, {RESAMPLES:,} resamples).</p>
{section(e) if section else ''}
</section>'''


def _how(e: Evaluation) -> str:
    """Describes the data, the number of examples, and differences from the run's own evaluation."""
    corrupt = f', {len(e.corrupt)} unreadable images skipped' if e.corrupt else ''
    among = f', restricted to {e.figures["classes"]:,} classes' if 'classes' in e.figures else ''
    extra = [str(e.figures[key]) for key in ('protocol', 'ops', 'weights') if key in e.figures]
    return (
        f'{e.source.name}, {len(e.predictions):,} examples{among}'
        + ''.join(f', {x}' for x in extra)
        + corrupt
    )


def _cards(e: Evaluation) -> str:
    """Shows each metric with its confidence interval and its meaning."""
    cards = []
    for name, metric in e.predictions.task.metrics.items():
        if e.figures[name] is None:
            continue
        interval = ''
        if name in e.figures['intervals']:
            low, high = e.figures['intervals'][name]
            digits = 1 if metric.fraction else 3
            interval = f'({metric.show(low, digits)} … {metric.show(high, digits)})'
            # Show the percent sign once.
            interval = interval.replace('% …', ' …')
        cards.append(
            f'<div class="card"><div class="name">{html.escape(metric.title)}</div>'
            f'<div class="figure">{metric.show(e.figures[name])}</div>'
            f'<div class="interval">{interval}</div>'
            f'<div class="quiet">{html.escape(metric.meaning)}</div></div>'
        )
    return ''.join(cards)


def anchor(e: Evaluation) -> str:
    """Returns the HTML id of an evaluation's section."""
    return html.escape(f'eval-{e.name}'.replace(' ', '_'), quote=True)
