"""The examples of docs/extending.md: each file is written, and each command runs, in their order."""

import os
import re
import shlex

import pytest

from tests.processes import REPO, run_module
from tests.tiers import quick, split

TEXT = (REPO / 'docs' / 'extending.md').read_text()
SHORT = ('--config.training.duration=2 epochs', '--config.schedule.warmup=0 steps')


def files(root):
    for name, text in re.findall(r'^```python\n# (\w+\.py)\n(.*?)^```', TEXT, re.M | re.S):
        (root / name).write_text(text)


def commands():
    for block in re.findall(r'^```bash\n(.*?)^```', TEXT, re.M | re.S):
        yield from (shlex.split(line)[2:] for line in block.strip().splitlines())


COMMANDS = list(commands())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder of a user's own, with the page's files in it."""
    root = tmp_path_factory.mktemp('own')
    (root / 'configs').symlink_to(REPO / 'configs')
    files(root)
    return root


# Quick: the metric and the task from training on; that SAM can be written by hand is in
# test_update.py.
@pytest.mark.parametrize('number', split(range(len(COMMANDS)), (0, 3)))
def test_each_command_runs(folder, number):
    words = COMMANDS[number]
    if quick() and words[0] == 'experiments.train':
        words = [*words, *SHORT]
    done = run_module(*words, cwd=folder, PYTHONPATH=f'{folder}{os.pathsep}{REPO}')
    assert done.returncode == 0, f'{words}\n{done.stderr}'
    if 'superclass' in ' '.join(words):
        assert 'superclass' in done.stdout
