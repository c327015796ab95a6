"""Signals: the first one stops the run within seconds, the second ends the process at once."""

import contextlib
import math
import os
import signal
import threading
import time

import numpy as np
import pytest

from tests.processes import Process
from tests.tiers import split
from tests.training import slow, tiny
from tests.training.test_resume import assert_same
from vision.core.checkpoints import newest_step
from vision.core.errors import Stopped, UserError
from vision.core.processes import StopSignals
from vision.core.workdir import read_records
from vision.data.arrays import digits
from vision.training import loop


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_the_first_asks_and_the_second_ends(monkeypatch, signum):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    before = signal.getsignal(signum)
    with pytest.raises(Stopped), StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum and ended == []
        stop.answer()
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [128 + signal.SIGINT]
        raise Stopped(signum, 'stopped at step 3')
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize('fails', [False, True])
def test_a_signal_that_nobody_stopped_for_reaches_whoever_comes_next(monkeypatch, fails):
    later = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: later.append(signum))
    try:
        with contextlib.suppress(UserError), StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            assert later == []
            if fails:
                raise UserError('the loss became NaN')
        assert later == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_it_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def use():
        with StopSignals() as stop:
            seen.append((stop.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


def test_a_signal_that_nobody_answered_is_for_whoever_comes_next():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    try:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            stop.answer()
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_slow_is_left_when_what_is_written_is_safe_and_steps_are_waited_for(monkeypatch):
    done = []
    monkeypatch.setattr(os, '_exit', lambda code: (done.append(code), stop.answer()))
    stop = StopSignals(lambda: done.append('safe'))
    stop.leave(signal.SIGTERM, 0.01)
    assert done == ['safe', 128 + signal.SIGTERM]
    stop = StopSignals(lambda: done.append('not asked'))
    stop.slow = False
    threading.Timer(0.1, stop.answer).start()
    stop.leave(signal.SIGTERM, 0.01)
    assert len(done) == 2


def test_in_an_evaluation_that_goes_on_in_a_library_what_is_done_is_kept_before_the_end(
    monkeypatch,
):
    done = []
    monkeypatch.setattr(os, '_exit', lambda code: (done.append(code), stop.answer()))
    stop = StopSignals(lambda: done.append('not asked'))
    with stop.interruptible(lambda: done.append('kept')):
        stop.leave(signal.SIGTERM, 0.01)
    assert done == ['kept', 128 + signal.SIGTERM]


def test_whoever_ends_the_run_first_ends_it(monkeypatch):
    """The main thread returns while `leave` writes, and must neither write nor take a step."""
    begun, written, never, order = *(threading.Event() for _ in range(3)), []
    monkeypatch.setattr(os, '_exit', lambda code: (order.append('end'), never.wait()))
    stop = StopSignals(lambda: (begun.set(), written.wait(10), order.append('written')))
    leaving = threading.Thread(target=stop.leave, args=(signal.SIGTERM, 0.01), daemon=True)
    answer = threading.Thread(target=lambda: (stop.answer(), order.append('answered')), daemon=True)
    leaving.start()
    assert begun.wait(10)
    answer.start()
    answer.join(0.1)
    assert order == []
    written.set()
    answer.join(0.1)
    assert order == ['written', 'end']


FLAGS = (
    *tiny.FLAGS, f'--config.model.name={slow.NET}', '--config.training.batch_size=32',
    '--config.training.duration=8 steps', '--config.training.log_every=8 steps', '--config.schedule.warmup=1 steps',
    '--config.training.checkpoint_every=4 steps', '--config.training.eval_every=8 steps',
)  # fmt: skip


def end(process, signum):
    process.send_signal(signum)
    sent = time.monotonic()
    done = process.wait(30)
    assert time.monotonic() - sent < 10
    assert done.returncode == 128 + signum, done.stderr
    assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr


@pytest.mark.slow
def test_in_validation_nothing_is_lost(tmp_path):
    process = Process('experiments.train', *FLAGS, f'--workdir={tmp_path}')
    process.wait_for(lambda: (tmp_path / 'metrics.jsonl').exists() and read_records(tmp_path))
    end(process, signal.SIGTERM)
    assert newest_step(tmp_path) == 4 and newest_step(tmp_path / 'interrupted') == 8


def test_in_the_test_at_the_end_the_last_checkpoint_is_kept(tmp_path):
    """A sweep must not take the run for finished."""
    found = {s: digits(s) for s in ('train', 'test')}
    arrays = {f'x_{s}': d.images for s, d in found.items()}
    arrays |= {f'y_{s}': d.labels for s, d in found.items()}
    np.savez(tmp_path / 'data.npz', **arrays)
    flags = ('--config.data.source=npz', f'--config.data.path={tmp_path}/data.npz')
    process = Process('experiments.train', *FLAGS, *flags, f'--workdir={tmp_path}/run')
    last = tmp_path / 'run' / 'checkpoints' / '8' / '_CHECKPOINT_METADATA'
    process.wait_for(last.exists)
    time.sleep(0.5)
    end(process, signal.SIGINT)
    assert last.exists()


@pytest.mark.parametrize('seconds', [0.1, 1.5])
def test_while_a_run_is_set_up(tmp_path, seconds):
    process = Process('experiments.train', *FLAGS, f'--workdir={tmp_path}')
    assert process.poll(seconds) is None, process.stderr
    end(process, signal.SIGINT)


@pytest.mark.slow
def test_while_a_step_is_compiled(tmp_path):
    flags = [flag for flag in FLAGS if 'model.name' not in flag]
    flags += ['--config.model.name=resnet110', f'--workdir={tmp_path}']
    process = Process('experiments.train', *flags, JAX_COMPILATION_CACHE_DIR='')
    process.wait_for(lambda: 'compiling the first one' in process.stderr)
    assert process.poll(3.0) is None
    end(process, signal.SIGTERM)


@pytest.mark.parametrize(
    ('split_of', 'nth'),
    split([('raw', 1), ('average', 2), ('average', 3), ('test', 1)], [('average', 3)]),
)
def test_in_an_evaluation_nothing_is_lost_and_the_run_ends_in_the_same_bits(
    tmp_path, monkeypatch, alone, split_of, nth
):
    """The nth evaluation of raw weights, averaged weights or the test split is interrupted.

    So is the first evaluation of the next start.
    """
    evaluate, seen = loop.Evaluator.__call__, []

    def interrupted(self, name, variables, *others):
        # The raw weights of a step are evaluated first.
        kind = name if name == 'test' else ('raw', 'average')[len(seen) % 2]
        seen.append(kind)
        if (kind, seen.count(kind)) == (split_of, nth) or len(seen) == 1 + stopped_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, name, variables, *others)

    def terminated(signum, frame):
        raise SystemExit(128 + signum)

    monkeypatch.setattr(loop.Evaluator, '__call__', interrupted)
    before, stopped_after = signal.signal(signal.SIGTERM, terminated), math.inf
    try:
        with pytest.raises((Stopped, SystemExit)):
            loop.train(config(), tmp_path)
        stopped_after = len(seen)
        with pytest.raises((Stopped, SystemExit)):
            loop.train(config(), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    monkeypatch.undo()
    assert (tmp_path / 'interrupted').is_dir() == (split_of != 'test')
    loop.train(config(), tmp_path)
    assert_same(tmp_path, alone, 24)
    assert not (tmp_path / 'interrupted').exists()


def config():
    return tiny.tiny_config(training__ema_decay=0.9)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('alone')
    loop.train(config(), workdir)
    return workdir
