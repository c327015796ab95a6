"""Step 4, train: `train(config, workdir)`, for the command, Python code and notebooks.

`vision.training.setup.setup` turns a config into a `Setup`, which holds the data, the model and the
recipe of the training step as objects. The loop and the training step take their settings from
these objects, not from the config. The loop calls each `Hook` at fixed points, such as after each
step. `OPTIMIZERS`, `SCHEDULES` and `UPDATES` map names to the available choices.

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
    from vision.training.start import check_start, first_state
    from vision.training.step import UPDATES, Recipe, init_state, make_train_step
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
