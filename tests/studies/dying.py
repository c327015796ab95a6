"""A network whose training fails in the way that its argument selects."""

import inspect
import os
import signal
import time
from pathlib import Path

from tests.training.tiny import Net
from vision.core.errors import UserError


class Dying(Net):
    """The small network; `how` selects the failure: at setup, at initialisation or in training."""

    how: str = ''

    def __call__(self, images, train):
        functions = {frame.function for frame in inspect.stack()}
        if 'init_state' in functions and self.how == 'mistake':
            raise UserError('the loss became NaN or infinite in step 3')
        if 'init_state' in functions and self.how == 'raise':
            raise RuntimeError('boom')
        if 'init_state' in functions and self.how == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if {'_train', 'setup'} <= functions and self.how.startswith('wait '):
            Path(self.how.removeprefix('wait ')).touch()
            time.sleep(60)
        logits, endpoints = super().__call__(images, train)
        return logits * (self.how != 'blind'), endpoints
