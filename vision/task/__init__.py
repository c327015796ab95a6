"""Tasks: the losses that a model is trained with, and the metrics that it is evaluated by.

A `Task` is one object with pure functions from a batch to the objective and from a model's outputs
to metrics. `TASKS` maps names to the built-in tasks: `Classification`, `MultiLabel` and
`Distillation` (in `vision.training.distillation`). A user-defined task is a subclass of `Task` or
of a built-in task, and the config names it as 'my_module:MyTask' (docs/extending.md).

Read first: `base.py` (the contract), `classification.py`, `losses.py`, `metrics.py`.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.task.base import (
        TASKS,
        Apply,
        Batch,
        Examples,
        Outcome,
        Settings,
        Task,
        make_task,
        prepared,
        read_task,
        task_of,
    )
    from vision.task.classification import Classification
    from vision.task.losses import LOSSES, Criterion, make_criterion
    from vision.task.metrics import Columns, Metric, Selection
    from vision.task.multilabel import MultiLabel
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
