"""The first signal asks, the second ends the process at once."""

import contextlib
import os
import signal
import threading

import pytest

from vision.core.errors import Stopped, UserError
from vision.core.processes import StopSignals


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_the_first_asks_and_the_second_ends(monkeypatch, signum):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    before = signal.getsignal(signum)
    with pytest.raises(Stopped), StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum and ended == []
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
