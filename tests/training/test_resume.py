"""A run that was killed and restarted ends in the same bits as an uninterrupted one."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from tests.processes import run_module
from tests.task.judged import RANK
from tests.tiers import split
from tests.training import tiny
from tests.training.tiny import tiny_config
from vision.core.checkpoints import Checkpoints
from vision.core.workdir import read_records
from vision.data.arrays import digits
from vision.evaluation.run import load_run
from vision.training import train
from vision.training.records import TIMES

STEPS = 40
FLAGS = (
    *tiny.FLAGS,
    f'--config.training.duration={STEPS} steps',
    '--config.training.log_every=10 steps',
    '--config.training.eval_every=20 steps',
    '--config.training.checkpoint_every=15 steps',
    '--config.training.ema_decay=0.9',
    '--config.schedule.warmup=5 steps',
)


def start(workdir, moment='never', step=0, devices=1, flags=FLAGS):
    words = (moment, step, *flags, f'--workdir={workdir}')
    return run_module('tests.training.killed_run', *words, devices=devices)


def records(workdir):
    """Returns a run's records without times."""
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_records(Path(workdir))]


def arrays(workdir):
    """Returns every array of the last checkpoint as bytes."""
    with Checkpoints(Path(workdir), RANK, read_only=True) as checkpoints:
        step = checkpoints.find('last')
    folder = Path(workdir) / 'checkpoints' / str(step)
    return step, {
        f'{item}{jax.tree_util.keystr(path)}': leaf.tobytes()
        for item in ('model', 'ema', 'training')
        for path, leaf in jax.tree_util.tree_leaves_with_path(stored(folder / item))
    }


def stored(folder):
    """Returns an item of a checkpoint as NumPy arrays, for any devices that it was saved from."""
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(folder, restore_args=as_numpy)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp('alone')
    done = start(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_the_workdir_holds_what_a_run_is(alone):
    names = {p.name for p in alone.iterdir()}
    assert {
        'config.json',
        'environment.json',
        'dataset.json',
        'metrics.jsonl',
        'checkpoints',
    } <= names
    environment = json.loads((alone / 'environment.json').read_text())
    assert environment['versions']['jax']
    assert any(FLAGS[0] in word for word in environment['command'])


def assert_same(workdir, alone, steps=STEPS):
    assert records(workdir) == records(alone)
    step, ours = arrays(workdir)
    assert step == steps
    _, theirs = arrays(alone)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if ours[k] != theirs[k]] == []


@pytest.mark.parametrize(
    ('moment', 'step'),
    split(
        [('step', 1), ('step', 22), ('save', 20), ('record', 20), ('record', STEPS)],
        [('step', 22)],
    ),
)
def test_killed_and_started_again(tmp_path, alone, moment, step):
    killed = start(tmp_path, moment, step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, alone)


@pytest.mark.parametrize(
    ('signum', 'code'),
    split([(signal.SIGTERM, 143), (signal.SIGINT, 130)], [(signal.SIGTERM, 143)]),
)
def test_a_signal_saves_and_the_run_goes_on_from_there(tmp_path, alone, signum, code):
    # The signal arrives within an interval, when no save is due.
    done = start(tmp_path, int(signum), 23)
    assert done.returncode == code, done.stderr
    with Checkpoints(tmp_path, RANK, read_only=True) as checkpoints:
        saved = checkpoints.find('last')
    assert f'stopped at step {saved}' in done.stderr
    assert 23 <= saved <= 24
    done = start(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'resuming from step {saved}' in done.stderr
    assert_same(tmp_path, alone)


@pytest.mark.slow  # the killed ones show it too
def test_two_runs_have_the_same_bits(tmp_path, alone):
    assert start(tmp_path).returncode == 0
    assert_same(tmp_path, alone)


def test_a_finished_run_says_so_and_changes_nothing(alone):
    def files():
        return {p: p.stat().st_mtime_ns for p in alone.rglob('*') if p.name != '.lock'}

    before = files()
    again = start(alone)
    assert again.returncode == 0, again.stderr
    assert 'finished' in again.stderr
    assert files() == before


@pytest.mark.slow
def test_stop_after_is_a_pause(tmp_path, alone):
    stopped = start(tmp_path, flags=(*FLAGS, '--config.training.stop_after=25 steps'))
    assert stopped.returncode == 0, stopped.stderr
    assert 'stopped early' in stopped.stdout
    assert start(tmp_path).returncode == 0
    assert_same(tmp_path, alone)


def test_another_config_is_refused(alone):
    other = start(alone, flags=(*FLAGS, '--config.optimizer.lr=0.2'))
    assert other.returncode == 2
    assert 'optimizer.lr is 0.05 there and 0.2 here' in other.stderr


def test_best_and_last_are_kept(alone):
    scores = {
        r['step']: (r['validation/top1'], -r['validation/loss'])
        for r in records(alone)
        if 'validation/top1' in r
    }
    best = max(scores, key=scores.get)
    assert load_run(alone).step == best
    with Checkpoints(alone, RANK, read_only=True) as checkpoints:
        kept = checkpoints.steps()
    assert STEPS in kept and best in kept and len(kept) <= 3


def test_with_nothing_held_out_the_last_step_is_tested_and_taken(tmp_path):
    train_source, test_source = (digits(split) for split in ('train', 'test'))
    arrays = {'x_train': train_source.images, 'y_train': train_source.labels}
    arrays |= {'x_test': test_source.images, 'y_test': test_source.labels}
    np.savez(tmp_path / 'data.npz', **arrays)
    config = tiny_config()
    config.data = ConfigDict({'source': 'npz', 'path': str(tmp_path / 'data.npz'), 'validation': 0})
    results = train(config, tmp_path / 'run')
    last = [r for r in records(tmp_path / 'run') if 'test/top1' in r]
    assert set(results) == {'test'}
    assert [r['test/checkpoint'] for r in last] == [24]
    assert load_run(tmp_path / 'run').step == 24


def test_two_runs_cannot_share_a_workdir(tmp_path):
    from vision.core.errors import UserError
    from vision.core.workdir import Lock

    with Lock(tmp_path), pytest.raises(UserError, match=f'in use by process {os.getpid()}'):
        Lock(tmp_path).__enter__()
    with Lock(tmp_path):
        pass
