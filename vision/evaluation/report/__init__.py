"""The report of an evaluation: `report/index.html` in a workdir, one file that loads no others.

`write_report` writes the page. A task may add a section (`Task.report`), which may draw charts with
`line_chart`.

Read first: `page.py`, `classification.py`.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.evaluation.report.charts import Curve, line_chart
    from vision.evaluation.report.page import write_report
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
