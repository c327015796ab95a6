"""Trains, and kills itself with SIGKILL at a given moment: `killed_run.py MOMENT STEP FLAGS…`.

MOMENT is `step` (after that step), `save` (while its checkpoint is being written), `record`
(after its record is written), `never`, or the number of a signal to send after that step.
"""

import os
import signal
import sys


def after(function, at_step, get_step, signum=signal.SIGKILL):
    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        if get_step(*args) == at_step:
            os.kill(os.getpid(), signum)
        return result

    return wrapped


def main():
    moment, at_step, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    from vision.core.checkpoints import Checkpoints
    from vision.training.hooks import Display
    from vision.training.records import Recorder

    if moment == 'step' or moment.isdecimal():
        signum = int(moment) if moment.isdecimal() else signal.SIGKILL
        Display.after_step = after(
            Display.after_step, at_step, lambda self, step, *rest: step, signum
        )
    elif moment == 'record':
        Recorder.write = after(Recorder.write, at_step, lambda self, step, values: step)
    elif moment == 'save':
        # Orbax writes in the background: the write has started and cannot finish.
        Checkpoints.save = after(
            Checkpoints.save, at_step, lambda self, state, *rest: int(state.step)
        )
    sys.argv = ['train', *argv]
    from experiments import train
    from vision.core import cli

    cli.run(train.main)


if __name__ == '__main__':
    main()
