"""Step 5, evaluate: the metrics of trained runs, with every example counted exactly once.

`load_run` reads a run from its workdir. `evaluate_runs` evaluates one run or an ensemble once for
each entry, which specifies the data, the views and the weights. `write_report` writes the report
page. `read_predictions` reads the predictions of a run for each example.

Read first: `answers.py` (the engine), `evals.py` (the entries), `run.py`, `figures.py` (confidence
intervals and tests).
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.evaluation.answers import Labels, Member, answer, make_step
    from vision.evaluation.evals import (
        Evaluation,
        evaluate_entry,
        evaluate_runs,
        named_entries,
        predict_run,
    )
    from vision.evaluation.figures import confusion, intervals, mcnemar, per_class
    from vision.evaluation.predictions import Predictions, read_predictions
    from vision.evaluation.report.classification import draw_mistakes
    from vision.evaluation.report.page import write_report
    from vision.evaluation.run import Run, load_run, pretrained_run
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
