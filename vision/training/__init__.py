"""Step 4, train: `train(config, workdir)`, the same from the command line, Python and a notebook.

A config becomes objects once (`Setup`, made by `vision.training.setup.setup`); the loop, the training step and the
optimizer know no config. A `Hook` is called after each step. `OPTIMIZERS`, `SCHEDULES` and `UPDATES` have the choices
by name.

Read first: `setup.py` (from config to objects), `loop.py` (the run), `step.py` (one update).
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.training.diagnosis import debugging, profile
    from vision.training.hooks import Display, EarlyStopping, Hook
    from vision.training.loop import train
    from vision.training.optimizer import OPTIMIZERS, make_optimizer
    from vision.training.records import Results, results_table
    from vision.training.schedules import SCHEDULES, Averaging, make_schedule
    from vision.training.setup import Setup, make_recipe
    from vision.training.step import UPDATES, Recipe, init_state, make_train_step
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
