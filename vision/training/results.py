"""What came out of a run, read from its records."""

from pathlib import Path
from typing import Any

from rich.table import Table

from vision.evaluation.figures import metrics_table
from vision.evaluation.run import read_task
from vision.training.recorder import newest, read

Results = dict[str, dict[str, Any]]


def results(workdir: Path, best: int) -> Results:
    """Returns the metrics of the best checkpoint by split, where there are any.

    Args:
      workdir: of the run.
      best: the step of its best checkpoint.
    """
    records = read(workdir)
    found = {'validation': newest(records, 'validation', best), 'test': newest(records, 'test')}
    return {split: metrics for split, metrics in found.items() if metrics is not None}


def evaluations(workdir: Path, last: int) -> list[tuple[int, dict[str, Any]]]:
    """Returns the validation metrics that were recorded up to step `last`, with their steps."""
    records = [r for r in read(workdir) if r['step'] <= last]
    scored = ((r['step'], newest([r], 'validation')) for r in records)
    return [(step, metrics) for step, metrics in scored if metrics is not None]


def results_table(results: Results, workdir: str) -> Table | str:
    """What `train` returned, as a person reads it."""
    if not results:
        return f'{workdir}: stopped early, as training.stop_after says'
    shown = read_task(Path(workdir).expanduser()).metrics
    return metrics_table(results, shown, title=f'{workdir}: the best checkpoint')
