"""`report/index.html` in a workdir: one file that holds all it shows, and loads nothing."""

import sys
from pathlib import Path

from vision.core.workdir import write_text
from vision.evaluation.evals import Evaluation
from vision.evaluation.predictions import predictions_file, write_predictions
from vision.evaluation.report.page import page
from vision.evaluation.run import Run


def write_report(runs: list[Run], evaluations: list[Evaluation]) -> Path | None:
    """Writes the page, and each evaluation's predictions beside it.

    Args:
      runs: that were evaluated; an ensemble's report goes into `report/ensemble` of the first.
      evaluations: of them.

    Returns:
      The page's path, or None, with a line on stderr, where the workdir cannot be written to.
    """
    folder = runs[0].path / 'report'
    if len(runs) > 1:
        folder /= 'ensemble'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for evaluation in evaluations:
            path = predictions_file(folder, evaluation.name)
            write_predictions(path, evaluation.predictions)
        write_text(folder / 'index.html', page(runs, evaluations))
    except OSError as e:
        print(f'{folder}: no report was written: {e.strerror or e}', file=sys.stderr)
        return None
    return folder / 'index.html'
