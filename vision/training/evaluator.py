"""Evaluation within a run: the step is compiled once, and each split put in place once."""

from typing import Any

from vision.evaluation.evaluate import evaluate, make_eval_step
from vision.preprocess import inputs
from vision.preprocess.device import Batch
from vision.training.setup import Setup


class Evaluator:
    """Evaluates the splits of a run.

    Attributes:
      first: by split, the first batch of its last evaluation and what `eval_step` said of it.
    """

    def __init__(self, run: Setup):
        """Takes the run; compiles and reads nothing yet."""
        self._run = run
        self._eval_step = make_eval_step(run.model, run.config, run.mesh)
        self._batches: dict[str, inputs.EvalBatches] = {}
        self.first: dict[str, tuple[Batch, Batch]] = {}

    def __call__(self, split: str, variables: Any) -> dict[str, Any]:
        """Returns the metrics of 'validation' or 'test', as `evaluate` has them."""
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
        num_classes, count = len(source.class_names), source.num_examples
        batches = self._batches[split]
        self.first.pop(split, None)

        def eval_step(variables: Any, batch: Batch) -> Batch:
            answers = self._eval_step(variables, batch)
            self.first.setdefault(split, (batch, answers))
            return answers

        return evaluate(eval_step, variables, batches, count, num_classes, batches.skipped)
