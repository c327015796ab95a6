"""The report's section on classification: confusion matrix, mistakes, classes and calibration."""

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from vision.core.text import below, common_root, json_text
from vision.evaluation import figures
from vision.evaluation.evals import Evaluation, Predicted
from vision.evaluation.predictions import Predictions
from vision.evaluation.report.charts import reliability_chart
from vision.preprocess.inputs import examples
from vision.preprocess.pictures import Picture, data_uri, draw_grid
from vision.task.classification import confidence, correct

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MISTAKES = 16  # number of pictures of each kind
_THUMBNAIL = 112  # maximum of the longer side, in pixels
_PAIRS = 25  # number of confused pairs in the table
_IN_ROW = 8  # pictures in a row of a figure
_SIDE_BY_SIDE = 12  # maximum number of classes for which matrix and table fit side by side


def section(e: Evaluation) -> str:
    """Returns the HTML of one evaluation's section, which follows its metrics."""
    p = e.predictions
    matrix = figures.confusion(p['label'], p['top_classes'][:, 0], len(p.class_names))
    worst, confident = _mistakes(p)
    # Read the images of the shown mistakes only.
    shown = examples(e.source, {int(p.ids[i]) for i in (*worst, *confident)})
    images = {example: data_uri(image, _THUMBNAIL) for example, image in shown}
    reliability = figures.reliability(confidence(p.columns), correct(p.columns))
    root = common_root(p.paths or ())
    name = f'path relative to {_escape(root)}' if root else 'number of the example'
    return f"""<h3>Confusion matrix</h3>
<div class="matrix{' large' if len(p.class_names) > _SIDE_BY_SIDE else ''}">
<div class="confusion"><script type="application/json">{_confusion_data(p, matrix)}</script></div>
{_pairs(p, matrix)}</div>
<h3>Mistakes with the highest loss</h3>
<p class="quiet">Below each image: the true class, the predicted class (→), its probability, the loss and the {name}.</p>
{_gallery(p, worst, images, 'worst')}
<h3>Mistakes with the highest confidence</h3>
{_gallery(p, confident, images, 'confident')}
<h3>Metrics by class</h3>
{_class_table(p, matrix)}
<h3>Calibration</h3>
<div class="charts">{reliability_chart(reliability)}</div>"""


def draw_mistakes(evaluated: Evaluation | Predicted, count: int = _MISTAKES) -> 'Figure':
    """Draws the mistakes with the highest loss, titled 'class → predicted class: probability'.

    Args:
      evaluated: an evaluation of a classification, as `evaluate_runs` or `predict_run` returns it.
      count: the largest number of mistakes to draw.
    """
    p, source = evaluated.predictions, evaluated.source
    rows = _mistakes(p)[0][:count]
    images = dict(examples(source, {int(p.ids[i]) for i in rows}))
    names, said = p.class_names, p['top_classes'][:, 0]
    shown = [
        Picture(
            images.get(int(p.ids[i])),
            f'{names[p["label"][i]]} → {names[said[i]]}: {confidence(p.columns)[i]:.0%}',
        )
        for i in rows
    ]
    grid = [shown[i : i + _IN_ROW] for i in range(0, len(shown), _IN_ROW)]
    return draw_grid(grid or [[Picture(None, 'no mistakes')]])


def _mistakes(p: Predictions) -> tuple[list[int], list[int]]:
    """Returns the rows of the mistakes with the highest loss and with the highest confidence."""
    # Stable sorts keep the order of the ids among equal values.
    wrong = np.flatnonzero(~correct(p.columns))
    by_loss = wrong[np.argsort(-p['loss'][wrong], kind='stable')]
    by_confidence = wrong[np.argsort(-confidence(p.columns)[wrong], kind='stable')]
    return by_loss[:_MISTAKES].tolist(), by_confidence[:_MISTAKES].tolist()


def _gallery(p: Predictions, rows: list[int], images: dict[int, str], kind: str) -> str:
    """Shows mistakes as pictures with captions."""
    if not rows:
        return '<p class="quiet">There are no mistakes.</p>'
    cells, root = [], common_root(p.paths or ())
    for i in rows:
        # The caption has the path relative to the common folder, the tooltip has the whole path.
        example, label, said = int(p.ids[i]), int(p['label'][i]), int(p['top_classes'][i, 0])
        where = f'example {example}' if p.paths is None else p.paths[i]
        short = where if p.paths is None else below(where, root)
        picture = images.get(example)
        shown = f'<img src="{picture}" alt="">' if picture else '<div class="gone">no picture</div>'
        cells.append(
            f'<figure class="mistake" title="{_escape(where)}">{shown}<figcaption>'
            f'<b>{_escape(p.class_names[label])}</b>'
            f'<span class="said">→ {_escape(p.class_names[said])}</span>'
            f'<span class="quiet">{confidence(p.columns)[i]:.1%}, loss {p["loss"][i]:.2f}</span>'
            f'<span class="quiet name">{_escape(short)}</span>'
            '</figcaption></figure>'
        )
    return f'<div class="gallery {kind}">{"".join(cells)}</div>'


def _confusion_data(p: Predictions, matrix: figures.Confusion) -> str:
    """Returns the class names and the cells, row by row, as JSON: [row, column, count, …]."""
    cells = np.stack([matrix.rows, matrix.columns, matrix.counts], axis=1).ravel().tolist()
    return _script_json({'names': p.class_names, 'cells': cells})


def _mistaken(matrix: figures.Confusion) -> list[tuple[int, int, int]]:
    """Returns the off-diagonal cells (row, column, count) by decreasing count."""
    off = np.flatnonzero(matrix.rows != matrix.columns)
    order = off[np.argsort(-matrix.counts[off], kind='stable')]
    columns = (matrix.rows, matrix.columns, matrix.counts)
    return list(zip(*(column[order].tolist() for column in columns), strict=True))


def _pairs(p: Predictions, matrix: figures.Confusion) -> str:
    """Lists the most frequently confused pairs of classes, for matrices too large to read."""
    support = figures.per_class(matrix).support
    rows = ''.join(
        f'<tr data-row="{i}" data-column="{j}"><td>{_escape(p.class_names[i])}</td>'
        f'<td>{_escape(p.class_names[j])}</td><td class="n">{count:,}</td>'
        f'<td class="n">{count / support[i]:.1%}</td></tr>'
        for i, j, count in _mistaken(matrix)[:_PAIRS]
    )
    if not rows:
        return ''
    return (
        '<details class="pairs" open><summary>Most frequent confusions</summary>'
        '<div class="scroll"><table class="sortable"><thead><tr><th>true class</th><th>predicted</th>'
        '<th class="n">count</th><th class="n">% of class</th></tr></thead>'
        f'<tbody>{rows}</tbody></table></div></details>'
    )


def _class_table(p: Predictions, matrix: figures.Confusion) -> str:
    """Lists support, precision, recall, F1 and the most frequent wrong prediction of each class."""
    each = figures.per_class(matrix)
    # `_mistaken` is sorted, so the first cell of a row is its most frequent mistake.
    most_often: dict[int, str] = {}
    for row, column, count in _mistaken(matrix):
        most_often.setdefault(row, f'{_escape(p.class_names[column])} ({count:,})')
    rows = ''.join(
        f'<tr><td>{_escape(name)}</td><td class="n">{each.support[i]:,}</td>'
        f'<td class="n">{_fraction(each.precision[i])}</td><td class="n">{_fraction(each.recall[i])}</td>'
        f'<td class="n">{_fraction(each.f1[i])}</td><td>{most_often.get(i, "")}</td></tr>'
        for i, name in enumerate(p.class_names)
    )
    search = (
        '<input class="filter" type="search" placeholder="find a class" aria-label="find a class">'
    )
    return (
        f'{search if len(p.class_names) > 20 else ""}<div class="scroll tall">'
        '<table class="sortable classes"><thead><tr><th>class</th><th class="n">examples</th>'
        '<th class="n">precision</th><th class="n">recall</th><th class="n">F1</th>'
        f'<th>most often confused with</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _fraction(value: float) -> str:
    return '–' if np.isnan(value) else f'{value:.1%}'


def _escape(text: str) -> str:
    """Escapes text for HTML; bytes of a file name that are not UTF-8 become question marks."""
    return html.escape(text.encode('utf-8', 'replace').decode())


def _script_json(value: Any) -> str:
    """Returns JSON without '<', so that it can stand in a script element."""
    text = json_text(value, ensure_ascii=True, separators=(',', ':'))
    return text.replace('<', '\\u003c')
