"""What hangs on the training loop: each hook is a class in a file of its own.

The loop calls them at five stated points, in the order in which they are listed. They see what
happens and change nothing that the run's bits depend on.
"""

from typing import Any

from vision.preprocess.device import Batch
from vision.training.step import Metrics


class Hook:
    """A hook that does nothing; a context manager, entered before the first step.

    With several processes every process has its hooks. A hook may read the device in `after_log`
    and `after_evaluation` only: elsewhere the device runs ahead of the host.
    """

    def __enter__(self) -> 'Hook':
        return self

    def __exit__(self, *_) -> None:
        """Ends it, whether the run ended well or not."""

    def start(self, step: int) -> None:
        """Called once, when `step` steps are done and the next one is about to be taken."""

    def before_step(self, step: int) -> None:
        """Called before step `step` (from 1) and its batch."""

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Called when the step, its batch and what will be its metrics are on the device."""

    def after_log(self, step: int, record: dict[str, Any], seconds_left: float) -> None:
        """Called with the record of the interval that ends with `step`, when it is written."""

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> str | None:
        """Called with the validation metrics; may return why the run shall end with this step."""
        return None
