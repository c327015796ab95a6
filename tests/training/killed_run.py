"""Trains, and kills itself with SIGKILL at a stated moment: `killed_run.py MOMENT STEP FLAGS…`.

MOMENT is `step` (when that step is done), `save` (while its checkpoint is being written),
`record` (when its record is written and no more) or `never`.
"""

import os
import signal
import sys


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def after(function, at_step, get_step):
    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        if get_step(*args) == at_step:
            die()
        return result

    return wrapped


def main():
    moment, at_step, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    from vision.core.checkpoints import Checkpoints
    from vision.training.hooks import Display
    from vision.training.records import Recorder

    if moment == 'step':
        Display.after_step = after(Display.after_step, at_step, lambda self, step, *rest: step)
    elif moment == 'record':
        Recorder.write = after(Recorder.write, at_step, lambda self, step, values: step)
    elif moment == 'save':
        # Orbax writes in the background: it has begun, and does not get to the end.
        Checkpoints.save = after(
            Checkpoints.save, at_step, lambda self, state, *rest: int(state.step)
        )
    sys.argv = ['train', *argv]
    from experiments import train
    from vision.core import cli

    cli.run(train.main)


if __name__ == '__main__':
    main()
