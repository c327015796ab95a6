"""Two processes with two CPU devices each, connected by loopback, are one run."""

import fcntl
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.processes import Process, run_module
from tests.task.judged import RANK
from tests.tiers import quick, split
from tests.training import tiny
from tests.training.test_resume import arrays, records, stored
from vision.core import distributed
from vision.core.checkpoints import Checkpoints
from vision.core.errors import UserError

STEPS = 20
FLAGS = (
    *tiny.FLAGS,
    f'--config.training.duration={STEPS} steps',
    '--config.training.log_every=5 steps',
    '--config.training.eval_every=10 steps',
    '--config.training.checkpoint_every=5 steps',
    '--config.schedule.warmup=5 steps',
)


def start(workdir, flags=FLAGS, program=('experiments.train',)):
    """Starts both processes with the flags of a distributed run."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    return [
        Process(
            *program, *flags, f'--workdir={workdir}', '--distributed',
            f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={i}', devices=2,
        )
        for i in range(2)
    ]  # fmt: skip


def end(processes, seconds=300):
    """Waits for both; returns their exit codes and stderr."""
    try:
        ended = [p.wait(seconds) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [p.returncode for p in ended], [p.stderr for p in ended]


def wait_for_step(workdir, step, processes):
    folder = Path(workdir) / 'checkpoints'
    while not any((folder / str(s) / '_CHECKPOINT_METADATA').exists() for s in range(step, STEPS)):
        assert all(p.poll() is None for p in processes), [p.stderr for p in processes]
        time.sleep(0.01)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """An uninterrupted run of two processes; all checkpoints are kept."""
    workdir = tmp_path_factory.mktemp('alone')
    processes = start(workdir, (*FLAGS, '--config.training.keep=99'))
    codes, told = end(processes)
    assert codes == [0, 0], told
    # Only process 0 prints and writes.
    assert 'training on' in told[0] and 'training on' not in told[1]
    return workdir


def test_both_write_one_workdir(alone):
    assert len(list(alone.glob('events.out.*'))) == 1
    steps = [r['step'] for r in records(alone) if 'train/loss' in r]
    assert steps == list(range(5, STEPS + 1, 5))
    # Each process saved its own shards.
    saved = {p.name for p in (alone / 'checkpoints' / str(STEPS) / 'model').glob('ocdbt.*')}
    assert saved == {'ocdbt.process_0', 'ocdbt.process_1'}


VICTIMS = split([(0, 1), (0,), (1,)], [(0, 1)], one_argument=True)


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    """Workdirs of runs of two processes, by the process that was killed."""
    return {victims: tmp_path_factory.mktemp('killed') for victims in [(0, 1), (0,), (1,)]}


@pytest.mark.parametrize('victims', VICTIMS)
def test_none_waits_for_ever_for_one_that_was_killed(killed, victims):
    workdir = killed[victims]
    processes = start(workdir)
    wait_for_step(workdir, 5, processes)
    for victim in victims:
        processes[victim].kill()
    began = time.monotonic()
    codes, _ = end(processes)
    assert all(code == -signal.SIGKILL if i in victims else code for i, code in enumerate(codes))
    assert time.monotonic() - began < 120


@pytest.mark.parametrize('victims', VICTIMS)
def test_who_was_killed_starts_again_and_ends_in_the_same_bits(killed, alone, victims):
    workdir = killed[victims]
    codes, told = end(start(workdir))
    assert codes == [0, 0], told
    assert 'resuming from step' in told[0]
    assert records(workdir) == records(alone)
    step, ours = arrays(workdir)
    assert step == STEPS
    _, theirs = arrays(alone)
    assert [k for k in theirs if ours[k] != theirs[k]] == []


def test_the_first_steps_are_those_of_one_process(tmp_path, alone):
    flags = (*FLAGS, '--config.training.stop_after=5 steps', f'--workdir={tmp_path}')
    done = run_module('experiments.train', *flags, devices=4)
    assert done.returncode == 0, done.stderr
    one, two = (stored(folder / 'checkpoints' / '5' / 'model') for folder in (tmp_path, alone))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), one, two)


@pytest.mark.parametrize(
    'signum', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_stops_both_at_one_step(tmp_path, alone, signum):
    processes = start(tmp_path)
    wait_for_step(tmp_path, 5, processes)
    processes[1].send_signal(signum)
    codes, told = end(processes)
    assert codes == [143, 143 if signum == signal.SIGTERM else 130], told
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        saved = checkpoints.find('last')
    assert all(f'stopped at step {saved}' in text for text in told)
    if not quick():  # that a run goes on to the same bits, the killed one shows
        codes, told = end(start(tmp_path))
        assert codes == [0, 0], told
        assert arrays(tmp_path) == arrays(alone)


@pytest.mark.slow
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_in_the_final_test_stops_both(tmp_path, signum):
    flags = (*FLAGS, '--config.evaluation.batch_size=1')
    program = ('tests.training.killed_run', f'test-{signum:d}', 3)
    codes, told = end(start(tmp_path, flags, program))
    assert codes == [143, 128 + signum], told
    assert all('stopped in the final test' in text.splitlines()[-1] for text in told)
    codes, told = end(start(tmp_path, flags))
    assert codes == [0, 0], told
    tests = [r for r in records(tmp_path) if 'test/loss' in r]
    assert [r['step'] for r in tests] == [STEPS]


@pytest.mark.slow
def test_what_is_wrong_is_one_line_on_both_and_no_hang(tmp_path):
    """A held lock, another config, a loss that is not finite, an invalid address."""
    flags = (*FLAGS, '--config.optimizer.lr=1e18', '--config.training.checkpoint_every=1 steps')
    codes, told = end(start(tmp_path, flags))
    assert codes == [2, 2]
    assert all('NaN or infinite in step' in text.splitlines()[-1] for text in told)

    codes, told = end(start(tmp_path, FLAGS))
    assert codes == [2, 2]
    assert all('optimizer.lr is 1e+18 there' in text for text in told)

    with open(tmp_path / '.lock', 'a') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        codes, told = end(start(tmp_path, flags))
    assert codes == [2, 2]
    assert all('is in use by' in text for text in told)


@pytest.mark.slow
def test_images_that_one_cannot_read_stop_both(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name_of_split, count in (('train', 40), ('val', 10)):
        for name in ('a', 'b'):
            folder = tmp_path / 'data' / name_of_split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    flags = (
        '--config=configs/digits_lenet5.py', '--config.data.source=folder',
        f'--config.data.path={tmp_path}/data', '--config.preprocess.train=decode|resize(32)',
        '--config.preprocess.eval=decode|resize(32)', '--config.training.batch_size=8',
        '--config.training.duration=60 steps', '--config.training.log_every=5 steps',
        '--config.training.eval_every=15 steps', '--config.schedule.warmup=2 steps',
        '--config.preprocess.mean=(0.5,)', '--config.preprocess.std=(0.5,)',
    )  # fmt: skip
    whole = tmp_path / 'whole'
    codes, told = end(start(whole, flags))
    assert codes == [0, 0], told
    for i in (3, 7):
        (tmp_path / 'data' / 'train' / 'a' / f'{i}.png').write_bytes(b'no image')
    codes, told = end(start(tmp_path / 'training', flags))
    assert codes == [2, 2], told
    assert all('could not be read so far' in text.splitlines()[-1] for text in told)
    for i in (3, 7):
        (tmp_path / 'data' / 'train' / 'a' / f'{i}.png').unlink()
    (tmp_path / 'data' / 'val' / 'b' / '4.png').write_bytes(b'no image')
    codes, told = end(start(tmp_path / 'evaluation', flags))
    assert codes == [2, 2], told
    assert all('val/b/4.png' in text.splitlines()[-1] for text in told)


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (('here', 2, 0), 'HOST:PORT'),
        (('a:1', 2, 2), 'the ids are 0 to 1'),
    ],
)
def test_arguments_that_do_not_fit_together(monkeypatch, arguments, says):
    for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=says):
        distributed.initialize(*arguments)


def test_where_no_cluster_is_recognised_it_says_what_to_give(tmp_path):
    done = run_module('experiments.train', *FLAGS, f'--workdir={tmp_path}/run', '--distributed')
    assert done.returncode == 2 and '--coordinator=HOST:PORT' in done.stderr
    assert not (tmp_path / 'run').exists()


def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES='two'"):
        distributed.initialize('a:1')
