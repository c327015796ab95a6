"""Trains, and kills itself with SIGKILL at a given moment: `killed_run.py MOMENT STEP FLAGS…`.

MOMENT is `step` (after that step), `save` (while its checkpoint is being written), `record`
(after its record is written), `never`, or the number of a signal to send after that step. With
`test-N`, process 1 of several gets signal N after batch STEP of the final test, which is slow.
"""

import os
import signal
import sys
import time


def after(function, at_step, get_step, signum=signal.SIGKILL):
    def wrapped(*args, **kwargs):
        result = function(*args, **kwargs)
        if get_step(*args) == at_step:
            os.kill(os.getpid(), signum)
        return result

    return wrapped


def in_test(evaluate, at_batch, signum):
    def wrapped(self, split, variables, after_batch=lambda batch: None):
        def after(batch):
            if split == 'test':
                time.sleep(0.05)
                if batch == at_batch and '--process_id=1' in sys.argv:
                    os.kill(os.getpid(), signum)
            after_batch(batch)

        return evaluate(self, split, variables, after)

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
    elif moment.startswith('test-'):
        from vision.training.loop import Evaluator

        Evaluator.__call__ = in_test(Evaluator.__call__, at_step, int(moment.removeprefix('test-')))
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
