"""Progress bars: shown on a terminal only."""

import contextlib
import os
import pty
import re
import subprocess
import sys

from tests.conftest import REPO

CODE = """
import sys, time
from vision.core.progress import phase, progress_bar, track
from vision.core.startup import exit_at_once
assert list(track(range(5), 5, 'classifying')) == list(range(5))
list(track('a', 1, 'listing [/b]'))
with phase('starting'):
    for _ in track('ab', None, 'inner'):
        with progress_bar() as start:
            start('innermost', 7, 3)(4, description='further', figures='loss 1')
            time.sleep(0.15)
print('answer')
if len(sys.argv) > 1:  # in the midst of a bar
    with phase('starting'):
        exit_at_once(130)
"""


def run(stderr, *words):
    return subprocess.run(
        [sys.executable, '-c', CODE, *words], cwd=REPO, stdout=subprocess.PIPE, stderr=stderr, text=True,
        env={**os.environ, 'TERM': 'xterm'},
    )  # fmt: skip


def test_on_a_terminal():
    watched, terminal = pty.openpty()
    done = run(terminal, 'leave')
    os.close(terminal)
    parts = []
    with contextlib.suppress(OSError):  # of its end
        while part := os.read(watched, 100_000):
            parts.append(part)
    seen = b''.join(parts).decode()
    assert 'classifying' in seen and '0/5' in seen and 'listing [/b]' in seen
    # Bars within bars are of one display, and an end at once gives the cursor back.
    assert 'starting' in seen and 'inner' in seen and re.search(r'further.*4/7 .*loss 1', seen)
    assert seen.count('\x1b[?25l') == seen.count('\x1b[?25h') == 4
    assert done.returncode == 130 and done.stdout == 'answer\n'


def test_in_a_pipe():
    done = run(subprocess.PIPE)
    assert done.returncode == 0 and done.stdout == 'answer\n' and done.stderr == ''
