"""Image classification in JAX. Importing it sets nothing: see `vision.core.startup`."""

from typing import Any

import vision.models.cpu.startup  # noqa: F401 - fast forms for CPUs: see vision/models/cpu


def load(workdir: Any, checkpoint: str = 'best', weights: str | None = None) -> Any:
    """Reads a trained run: its model, variables, task and preprocessing.

    Args:
      workdir: of the run.
      checkpoint: 'best', 'last' or a step.
      weights: 'ema', 'raw', or None: the moving average where there is one.

    Returns:
      A `vision.evaluation.run.Run`: `model` (unbound), `variables`, `task`, `config` (with
      `config.preprocess.eval`, the op string), `class_names` and `input_shape`.

    Raises:
      UserError: it is no workdir, or has no such checkpoint.
    """
    from vision.evaluation.run import load_run

    return load_run(workdir, checkpoint, weights)
