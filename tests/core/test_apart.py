"""Functions in child processes: the reason of a failure reaches the caller, and signals both."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPO

# Runs in a process without JAX, whose children are forks.
SCRIPT = """
import json, os, signal, sys, time, types
from vision.core.apart import Died, run_apart
from vision.core.errors import Stopped, UserError

def work(how):
    if how == 'return': return {'pid': os.getpid()}
    if how == 'mistake': raise UserError('write 20 epochs')
    if how == 'raise': raise RuntimeError('boom\\nand more')
    if how == 'memory': raise MemoryError
    if how == 'exit': sys.exit(5)
    if how == '_exit': os._exit(7)
    if how == 'kill': os.kill(os.getpid(), signal.SIGKILL)
    if how == 'stop': raise Stopped(signal.SIGTERM, 'stopped at step 3')
    if how == 'slow to stop':
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if how == 'deaf':  # its main thread is in a library and does not come back; another one ends it
        current = types.SimpleNamespace(leave=lambda signum, seconds: os._exit(128 + signum))
        holder = types.SimpleNamespace(StopSignals=types.SimpleNamespace(current=current))
        sys.modules['vision.core.processes'] = holder
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: None)
    print('running', os.getpid(), flush=True)
    time.sleep(60)

for how in sys.argv[1:]:
    try:
        print(json.dumps(['returned', run_apart(work, how)['pid'] != os.getpid()]))
    except (UserError, Died, Stopped) as e:
        print(json.dumps([type(e).__name__, str(e), getattr(e, 'details', '')]))
"""


def run(*how):
    return subprocess.Popen(
        [sys.executable, '-c', SCRIPT, *how], cwd=REPO, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(REPO)},
    )  # fmt: skip


def test_every_end_has_its_reason():
    expected = {
        'return': ('returned', True),
        'mistake': ('UserError', 'write 20 epochs'),
        'raise': ('Died', 'RuntimeError: boom and more (<string>, line 9)'),
        'memory': ('Died', 'MemoryError (<string>, line 10)'),
        'exit': ('Died', 'its code ended the process (5)'),
        '_exit': ('Died', 'its process ended with exit code 7'),
        'kill': ('Died', 'its process was ended by SIGKILL; it may have run out of memory'),
        'stop': ('Died', 'stopped at step 3'),
    }
    out, err = run(*expected).communicate(timeout=60)
    found = [json.loads(line) for line in out.splitlines()]
    assert [tuple(row[:2]) for row in found] == list(expected.values()), err
    assert 'boom' in found[2][2] and 'Traceback' in found[2][2]
    assert err == ''


@pytest.mark.parametrize(
    ('how', 'signum'), [('run', signal.SIGTERM), ('run', signal.SIGINT), ('deaf', signal.SIGTERM)]
)
def test_a_signal_ends_both(how, signum):
    process = run(how, 'return')
    child = int(process.stdout.readline().split()[1])
    process.send_signal(signum)
    assert json.loads(process.stdout.readline())[:2] == ['Stopped', 'stopped']
    process.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_whoever_loses_its_caller_ends():
    process = run('run')
    child = int(process.stdout.readline().split()[1])
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f'/proc/{child}/stat').read_text().rpartition(')')[2].split()[0] == 'Z':
            return
        time.sleep(0.02)
    pytest.fail('it still runs')
