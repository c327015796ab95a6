"""Image classification in JAX, one package for each step from images to predictions.

`vision.load(workdir)` reads a trained run: its model, variables, task and preprocessing. These are
the packages, in the order in which a run uses them:

- `data`: sources of labelled images, their splits and their order;
- `preprocess`: the loader, and the ops with which it decodes and augments images;
- `models`: the models by name, and the layers that they are made of;
- `task`: the losses that a model is trained with, and the metrics that it is evaluated by;
- `training`: `train(config, workdir)`;
- `evaluation`: the metrics of trained runs, exactly once for each example;
- `prediction`: `Classifier`, which classifies new images;
- `search`: similar images and duplicates;
- `studies`: sweeps, comparisons and previews over configs and runs;
- `core`: configs, workdirs, checkpoints, and other code that all packages share.

Importing `vision` changes no setting of JAX or of the process (see `vision.core.startup`).
"""

from typing import TYPE_CHECKING

import vision.models.cpu.startup  # noqa: F401 - fast forms for CPUs: see vision/models/cpu
from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.evaluation.run import load_run as load  # noqa: F401
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
