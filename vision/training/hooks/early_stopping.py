"""Early stopping: a run ends when the validation split has seen nothing better for a while."""

from fractions import Fraction
from typing import Any

from vision.core.checkpoints import Rank
from vision.training.hooks import Hook


class EarlyStopping(Hook):
    """Ends a run `training.patience` after its best evaluation.

    What it knows follows from the run's records alone, so a run that was killed ends where one that
    was left alone does.
    """

    def __init__(self, patience: Fraction | None, rank: Rank):
        """Starts without an evaluation.

        Args:
          patience: in steps; None never ends a run.
          rank: of validation metrics; greater is better.
        """
        self._patience, self._rank = patience, rank
        self._best: tuple[float, ...] | None = None
        self._best_step = self._last_step = 0

    def replay(self, evaluations: list[tuple[int, dict[str, Any]]]) -> None:
        """Takes the evaluations (step, validation metrics) that were recorded before."""
        for step, scores in evaluations:
            self.after_evaluation(step, scores)

    @property
    def reached(self) -> bool:
        """Whether the last evaluation ended the run."""
        return self._patience is not None and self._last_step - self._best_step >= self._patience

    def after_evaluation(self, step: int, scores: dict[str, Any]) -> str | None:
        """Looks whether it was better, as the best checkpoint is chosen."""
        rank = self._rank(scores)
        if self._best is None or rank > self._best:
            self._best, self._best_step = rank, step
        self._last_step = step
        if not self.reached:
            return None
        return (
            f'stopped early at step {step}: no better than step {self._best_step} on the '
            'validation split for as long as training.patience says'
        )
