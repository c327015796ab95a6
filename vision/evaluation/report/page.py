"""The page: its data put into `template.html`, everything that others have written escaped."""

import html
import json
import re
from importlib import resources
from typing import Any

import numpy as np

from vision.core import config as config_lib
from vision.core.workdir import environment, read_records
from vision.evaluation import metrics
from vision.evaluation.evals import Evaluation
from vision.evaluation.predictions import Predictions
from vision.evaluation.report.charts import curves, line_chart, reliability_chart
from vision.evaluation.run import Run
from vision.preprocess.inputs import examples
from vision.preprocess.pictures import data_uri

_MISTAKES = 16  # pictures of each kind
_THUMBNAIL = 112  # pixels of the longer side of a large image; a small one stays as it is
_PAIRS = 25  # of classes that are confused
_SIDE_BY_SIDE = 12  # classes; with more, the pairs are below the matrix
_HEADLINES = {
    'top1': ('top-1', 'the right class came first'),
    'top5': ('top-5', 'it was among the first five'),
    'balanced_accuracy': ('balanced accuracy', 'the mean of the classes’ recalls'),
    'loss': ('loss', 'mean −log of the right class’s probability'),
    'ece': ('calibration error', 'mean gap between confidence and accuracy (ECE)'),
    'brier': ('Brier score', 'mean squared error of the probabilities'),
}
_PERCENT = ('top1', 'top5', 'balanced_accuracy', 'ece')


def page(runs: list[Run], evaluations: list[Evaluation]) -> str:
    """The whole page.

    Args:
      runs: that were evaluated.
      evaluations: of them.
    """
    records = read_records(runs[0].path)
    charts = line_chart('Loss', curves(records, 'loss')) + line_chart(
        'Top-1', curves(records, 'top1'), percent=True
    )
    names = ', '.join(run.path.name for run in runs)
    parts = {
        'title': html.escape(f'{names}: evaluation'),
        'subtitle': html.escape(_subtitle(runs)),
        'overview': _overview(evaluations),
        'curves': charts or '<p class="quiet">There are no records of the training.</p>',
        'evaluations': ''.join(_evaluation(e) for e in evaluations),
        'config': html.escape(config_lib.to_json(runs[0].config)),
        'trained_with': html.escape(_environment_of(runs[0])),
        'evaluated_with': html.escape(json.dumps(environment(), indent=2)),
    }
    template = resources.files(__package__).joinpath('template.html').read_text(encoding='utf-8')
    return re.sub(r'\{\{(\w+)\}\}', lambda match: parts[match[1]], template)


def _environment_of(run: Run) -> str:
    """What the run was trained on, as it was written down."""
    path = run.path / 'environment.json'
    return path.read_text() if path.exists() else 'It was not written down.'


def _subtitle(runs: list[Run]) -> str:
    said = [
        f'{run.config.model.name} trained on {run.config.data.source}, checkpoint of step {run.step:,}'
        for run in runs
    ]
    ensemble = f'An ensemble of {len(runs)}: ' if len(runs) > 1 else ''
    return ensemble + '; '.join(said) + f'. {runs[0].path}'


def _overview(evaluations: list[Evaluation]) -> str:
    """A table of all evaluations, where there are several."""
    if len(evaluations) < 2:
        return ''
    head = ''.join(f'<th class="n">{title}</th>' for title, _ in _HEADLINES.values())
    rows = ''.join(
        f'<tr><td><a href="#{_anchor(e)}">{html.escape(e.name)}</a></td>'
        + ''.join(f'<td class="n">{_value(e.figures[key], key)}</td>' for key in _HEADLINES)
        + f'<td class="n">{e.figures["count"]:,}</td></tr>'
        for e in evaluations
    )
    return (
        '<div class="scroll"><table class="sortable"><thead><tr><th>evaluation</th>'
        f'{head}<th class="n">examples</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _evaluation(e: Evaluation) -> str:
    """The section of one evaluation."""
    p = e.predictions
    matrix = metrics.confusion(p.labels, p.predicted, len(p.class_names))
    worst, confident = _mistakes(p)
    shown = examples(e.source, {int(p.ids[i]) for i in (*worst, *confident)})
    images = {example: data_uri(image, _THUMBNAIL) for example, image in shown}
    return f'''<section class="evaluation" id="{_anchor(e)}">
<h2>{html.escape(e.name)} <small>{html.escape(_how(e))}</small></h2>
<div class="cards">{_cards(e)}</div>
<p class="quiet">In brackets: 95 % confidence intervals, by resampling the examples {metrics.RESAMPLES:,} times.</p>
<h3>Which classes are taken for which</h3>
<div class="matrix{' large' if len(p.class_names) > _SIDE_BY_SIDE else ''}">
<div class="confusion"><script type="application/json">{_confusion_data(p, matrix)}</script></div>
{_pairs(p, matrix)}</div>
<h3>Mistakes with the highest loss</h3>
<p class="quiet">The class that is right, what it was taken for (→) and how surely. Point at a picture for its name.</p>
{_gallery(p, worst, images, 'worst')}
<h3>Mistakes that it was surest of</h3>
{_gallery(p, confident, images, 'confident')}
<h3>Each class</h3>
{_class_table(p, matrix)}
<h3>Calibration</h3>
<div class="charts">{reliability_chart(metrics.reliability(p.confidence, p.correct))}</div>
</section>'''


def _how(e: Evaluation) -> str:
    corrupt = f', {len(e.corrupt)} could not be read' if e.corrupt else ''
    among = f', {e.figures["classes"]:,} classes compared' if 'classes' in e.figures else ''
    extra = [str(e.figures[key]) for key in ('protocol', 'ops', 'weights') if key in e.figures]
    return (
        f'{e.source.name}, {len(e.predictions):,} examples{among}'
        + ''.join(f', {x}' for x in extra)
        + corrupt
    )


def _cards(e: Evaluation) -> str:
    cards = []
    for key, (title, explained) in _HEADLINES.items():
        if e.figures[key] is None:
            continue
        low, high = e.figures['intervals'][key]
        digits = 1 if key in _PERCENT else 3
        interval = f'{_value(low, key, digits)} … {_value(high, key, digits)}'.replace('% …', ' …')
        cards.append(
            f'<div class="card"><div class="name">{title}</div>'
            f'<div class="figure">{_value(e.figures[key], key)}</div>'
            f'<div class="interval">({interval})</div>'
            f'<div class="quiet">{explained}</div></div>'
        )
    return ''.join(cards)


def _value(value: float | None, key: str, digits: int | None = None) -> str:
    if value is None:
        return '–'
    if key in _PERCENT:
        return f'{100 * value:.{2 if digits is None else digits}f}%'
    return f'{value:.{4 if digits is None else digits}f}'


def _mistakes(p: Predictions) -> tuple[list[int], list[int]]:
    """The rows of the mistakes with the highest loss, and of those with the highest confidence."""
    wrong = np.flatnonzero(~p.correct)
    by_loss = wrong[np.argsort(-p.loss[wrong], kind='stable')]
    by_confidence = wrong[np.argsort(-p.confidence[wrong], kind='stable')]
    return by_loss[:_MISTAKES].tolist(), by_confidence[:_MISTAKES].tolist()


def _gallery(p: Predictions, rows: list[int], images: dict[int, str], kind: str) -> str:
    if not rows:
        return '<p class="quiet">There are none.</p>'
    cells = []
    for i in rows:
        example, label, said = int(p.ids[i]), int(p.labels[i]), int(p.predicted[i])
        where = f'example {example}' if p.paths is None else p.paths[i]
        picture = images.get(example)
        shown = f'<img src="{picture}" alt="">' if picture else '<div class="gone">no picture</div>'
        cells.append(
            f'<figure class="mistake" title="{_escape(where)}">{shown}<figcaption>'
            f'<b>{_escape(p.class_names[label])}</b>'
            f'<span class="said">→ {_escape(p.class_names[said])}</span>'
            f'<span class="quiet">{p.confidence[i]:.1%}, loss {p.loss[i]:.2f}</span>'
            '</figcaption></figure>'
        )
    return f'<div class="gallery {kind}">{"".join(cells)}</div>'


def _confusion_data(p: Predictions, matrix: np.ndarray) -> str:
    """Class names, and of the matrix what is not 0, row by row: [row, column, count, …]."""
    rows, columns = np.nonzero(matrix)
    cells = np.stack([rows, columns, matrix[rows, columns]], axis=1).ravel().tolist()
    return _script_json({'names': p.class_names, 'cells': cells})


def _pairs(p: Predictions, matrix: np.ndarray) -> str:
    """The pairs of classes that are confused most, for matrices too large to find them in."""
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind='stable')[:_PAIRS]
    support = matrix.sum(1)
    rows = ''.join(
        f'<tr data-row="{i}" data-column="{j}"><td>{_escape(p.class_names[i])}</td>'
        f'<td>{_escape(p.class_names[j])}</td><td class="n">{off[i, j]:,}</td>'
        f'<td class="n">{off[i, j] / support[i]:.1%}</td></tr>'
        for i, j in zip(*np.unravel_index(order, off.shape), strict=True)
        if off[i, j]
    )
    if not rows:
        return ''
    return (
        '<details class="pairs" open><summary>The pairs that are confused most</summary>'
        '<div class="scroll"><table class="sortable"><thead><tr><th>class</th><th>taken for</th>'
        '<th class="n">times</th><th class="n">of the class</th></tr></thead>'
        f'<tbody>{rows}</tbody></table></div></details>'
    )


def _class_table(p: Predictions, matrix: np.ndarray) -> str:
    each = metrics.per_class(matrix)
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    taken_for = off.argmax(1)
    rows = ''.join(
        f'<tr><td>{_escape(name)}</td><td class="n">{each.support[i]:,}</td>'
        f'<td class="n">{_fraction(each.precision[i])}</td><td class="n">{_fraction(each.recall[i])}</td>'
        f'<td class="n">{_fraction(each.f1[i])}</td>'
        f'<td>{_most_often(p, off, i, int(taken_for[i]))}</td></tr>'
        for i, name in enumerate(p.class_names)
    )
    search = (
        '<input class="filter" type="search" placeholder="find a class" aria-label="find a class">'
    )
    return (
        f'{search if len(p.class_names) > 20 else ""}<div class="scroll tall">'
        '<table class="sortable classes"><thead><tr><th>class</th><th class="n">examples</th>'
        '<th class="n">precision</th><th class="n">recall</th><th class="n">F1</th>'
        f'<th>most often taken for</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _most_often(p: Predictions, off: np.ndarray, row: int, column: int) -> str:
    if not off[row, column]:
        return ''
    return f'{_escape(p.class_names[column])} ({off[row, column]:,})'


def _fraction(value: float) -> str:
    return '–' if np.isnan(value) else f'{value:.1%}'


def _anchor(e: Evaluation) -> str:
    return html.escape(f'eval-{e.name}'.replace(' ', '_'), quote=True)


def _escape(text: str) -> str:
    """Escaped; what is no UTF-8 in a file's name is shown as a question mark."""
    return html.escape(text.encode('utf-8', 'replace').decode())


def _script_json(value: Any) -> str:
    """JSON that may stand in a script element: it holds no '<'."""
    text = json.dumps(value, ensure_ascii=True, separators=(',', ':'))
    return text.replace('<', '\\u003c')
