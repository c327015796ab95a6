"""A run that is killed 50 times at random moments ends in the bits of an uninterrupted one."""

import random
import signal
import subprocess
import time

import pytest

from tests.conftest import REPO, command, environment
from tests.training.test_resume import arrays, records

KILLS, SEED, STEPS = 50, 0, 3000
FLAGS = (
    '--config=configs/digits_lenet5.py',
    f'--config.training.duration={STEPS} steps',
    '--config.training.batch_size=16',
    '--config.training.log_every=7 steps',
    '--config.training.eval_every=40 steps',
    '--config.training.checkpoint_every=5 steps',
    '--config.training.ema_decay=0.9',
    '--config.schedule.warmup=5 steps',
)


def start(workdir):
    return subprocess.Popen(
        command('experiments.train', *FLAGS, f'--workdir={workdir}'),
        env=environment(),
        cwd=REPO,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(process, workdir, seconds, early):
    """Kills a run some time after its first new checkpoint began; returns whether it had begun.

    An early kill counts from the line that says that the run resumes.
    """
    for line in process.stderr:
        if 'compiling the first one' in line:
            break
    before = set((workdir / 'checkpoints').iterdir())
    while not early and process.poll() is None:
        if set((workdir / 'checkpoints').iterdir()) - before:
            break
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.nightly
def test_fifty_kills_change_no_bit(tmp_path):
    moments = random.Random(SEED)
    workdir, in_saves = tmp_path / 'killed', 0
    for kill in range(KILLS):
        seconds, early = moments.uniform(0.0, 0.5), kill % 5 == 4
        assert kill_after(start(workdir), workdir, seconds, early), f'ended before kill {kill}'
        in_saves += any((workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp'))
    last = start(workdir)
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    alone = start(tmp_path / 'alone')
    _, errors = alone.communicate()
    assert alone.returncode == 0, errors
    print(f'{KILLS} kills, {in_saves} of them while a checkpoint was being written')
    assert in_saves >= 5
    assert records(workdir) == records(tmp_path / 'alone')
    step, ours = arrays(workdir)
    assert step == STEPS
    assert (step, ours) == arrays(tmp_path / 'alone')
