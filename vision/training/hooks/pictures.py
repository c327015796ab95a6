"""Pictures for TensorBoard: what the model is fed."""

import numpy as np

from vision.preprocess.device import Batch
from vision.training.hooks import Hook
from vision.training.recorder import Recorder
from vision.training.step import Metrics

_MOST = 64  # images of a grid


class Pictures(Hook):
    """Shows the first training batch."""

    def __init__(self, recorder: Recorder):
        """Takes what the pictures are written with."""
        self._recorder = recorder

    def after_step(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Shows what was fed in the first step, of what this process holds."""
        if step == 1:
            images = np.asarray(batch['image'].addressable_shards[0].data[:_MOST])
            self._recorder.images('train/images', images, 0)
