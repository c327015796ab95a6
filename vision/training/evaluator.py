"""Evaluation within a run: the step is compiled once, and each split put in place once."""

from typing import Any

from vision.core.errors import UserError
from vision.evaluation.answers import Member, answer, make_step
from vision.evaluation.figures import figures
from vision.preprocess import inputs
from vision.preprocess.device import Batch
from vision.training.setup import Setup


class Evaluator:
    """Evaluates the splits of a run.

    Attributes:
      first: by split, the first batch of its last evaluation and the answers to it.
    """

    def __init__(self, run: Setup):
        """Takes the run; compiles and reads nothing yet."""
        self._run = run
        self._step = make_step(run.task, run.model, run.mesh)
        self._batches: dict[str, inputs.EvalBatches] = {}
        self.first: dict[str, tuple[Batch, Batch]] = {}

    def __call__(self, split: str, variables: Any) -> dict[str, Any]:
        """Returns the task's metrics and `count` of 'validation' or 'test'."""
        run = self._run
        source = run.validation if split == 'validation' else run.test
        assert source is not None
        if split not in self._batches:
            self._batches[split] = inputs.EvalBatches(
                source,
                run.config.preprocess.eval,
                run.config.evaluation.batch_size,
                run.mesh,
                max_corrupt=run.config.data.max_corrupt,
            )
        batches = self._batches[split]
        self.first.pop(split, None)

        def step(variables: Any, batch: Batch) -> Batch:
            answers = self._step(variables, batch)
            self.first.setdefault(split, (batch, answers))
            return answers

        member = Member(step, variables, batches, batches.skipped)
        columns = answer(run.task, [member], source.num_examples)
        scores = figures(run.task, columns)
        chosen = scores.get(run.selection.name)
        if split == 'validation' and chosen is None:
            raise UserError(
                f'training.best_by: {run.selection.name!r} is no number on {source.name}; '
                'select by another metric'
            )
        return scores
