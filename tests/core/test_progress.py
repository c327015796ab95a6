"""Progress bars: shown on a terminal only."""

import os
import pty
import subprocess
import sys

from tests.conftest import REPO

CODE = """
from vision.core.progress import track
assert list(track(range(5), 5, 'classifying')) == list(range(5))
list(track('a', 1, 'listing [/b]'))
print('answer')
"""


def run(stderr):
    return subprocess.run(
        [sys.executable, '-c', CODE], cwd=REPO, stdout=subprocess.PIPE, stderr=stderr, text=True,
        env={**os.environ, 'TERM': 'xterm'},
    )  # fmt: skip


def test_on_a_terminal():
    watched, terminal = pty.openpty()
    done = run(terminal)
    os.close(terminal)
    seen = os.read(watched, 100_000).decode()
    assert 'classifying' in seen and '0/5' in seen and 'listing [/b]' in seen
    assert done.returncode == 0 and done.stdout == 'answer\n'


def test_in_a_pipe():
    done = run(subprocess.PIPE)
    assert done.returncode == 0 and done.stdout == 'answer\n' and done.stderr == ''
