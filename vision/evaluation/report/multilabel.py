"""The report's section on multi-label classification: precision and recall of each class."""

import html

import numpy as np

from vision.evaluation.evals import Evaluation
from vision.evaluation.report.charts import Curve, line_chart
from vision.task.multilabel import average_precisions, f1

_CURVES = 12  # number of classes whose curves are drawn


def section(e: Evaluation) -> str:
    """Returns the HTML of one evaluation's section, which follows its metrics."""
    p = e.predictions
    labels, probabilities = p['label'], p['probabilities']
    threshold = p.task.threshold  # type: ignore[attr-defined]
    predicted = probabilities >= threshold
    # The metrics of each class.
    support, precision = labels.sum(0), average_precisions(labels, probabilities)
    scores = f1(labels, predicted)
    rows = ''.join(
        f'<tr><td>{html.escape(name)}</td><td class="n">{int(support[k]):,}</td>'
        f'<td class="n">{int(predicted[:, k].sum()):,}</td>'
        f'<td class="n">{_percent(precision[k])}</td><td class="n">{_percent(scores[k])}</td></tr>'
        for k, name in enumerate(p.class_names)
    )
    return f"""<h3>Precision-recall curves</h3>
<p class="quiet">The {min(_CURVES, len(p.class_names))} classes with the most examples.</p>
<div class="charts">{_charts(p.class_names, labels, probabilities)}</div>
<h3>Metrics by class</h3>
<div class="scroll tall"><table class="sortable classes"><thead><tr><th>class</th>
<th class="n">examples</th><th class="n">predicted</th><th class="n">average precision</th>
<th class="n">F1</th></tr></thead><tbody>{rows}</tbody></table></div>
<p class="quiet">A class counts as predicted from a probability of {threshold:g}.</p>"""


def _charts(names: tuple[str, ...], labels: np.ndarray, probabilities: np.ndarray) -> str:
    """Draws the precision-recall curves of the classes with the most examples."""
    from sklearn.metrics import precision_recall_curve

    charts = []
    for k in np.argsort(-labels.sum(0), kind='stable')[:_CURVES]:
        if not labels[:, k].any() or not np.isfinite(probabilities[:, k]).all():
            continue
        # scikit-learn returns decreasing recalls.
        precision, recall, _ = precision_recall_curve(labels[:, k], probabilities[:, k])
        points = list(zip(recall[::-1].tolist(), precision[::-1].tolist(), strict=True))
        curve = Curve('precision', 'validation', points)
        charts.append(line_chart(names[k], [curve], percent=True, x_name='recall'))
    return ''.join(charts)


def _percent(value: float) -> str:
    return '–' if np.isnan(value) else f'{value:.1%}'
