"""The README's commands, read out of the README, run in their order."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import REPO, environment

README = (REPO / 'README.md').read_text()
BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', README, re.M | re.S)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where a user would be: a clone, which the runs do not touch."""
    root = tmp_path_factory.mktemp('clone')
    for name in ('configs', 'docs'):
        (root / name).symlink_to(REPO / name)
    return root


def run(command, folder):
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(PYTHONPATH=f'{folder}{os.pathsep}{REPO}'),
        capture_output=True,
        text=True,
        timeout=600,
    )


def commands(block):
    """The commands of a block, without those that install: whoever runs this has installed."""
    for line in block.strip().splitlines():
        for part in line.split(' && '):
            if part.startswith('python -m'):
                yield part


def test_the_two_commands_come_first():
    shell = [text.strip() for kind, text in BLOCKS if kind == 'bash']
    assert shell[0].startswith('pip install -e . && python -m experiments.train')
    assert shell[1] == 'pip install -e ".[test]" && pytest'
    assert shell[1] in (REPO / '.ci' / 'run').read_text()


def test_every_block_runs_and_digits_reach_what_they_should(folder):
    ran = 0
    for kind, text in BLOCKS:
        if kind == 'python':
            name = re.match(r'# (\w+\.py)\n', text)
            if name:
                (folder / name[1]).write_text(text)
                continue
            done = run([sys.executable, '-c', text], folder)
            assert done.returncode == 0, f'{text}\n{done.stderr}'
            ran += 1
        for command in commands(text) if kind == 'bash' else ():
            words = shlex.split(command)
            done = run([sys.executable, *words[1:]], folder)
            assert done.returncode == 0, f'{command}\n{done.stderr}'
            ran += 1
    assert ran >= 7
    paper = json.loads((folder / 'runs' / 'paper' / 'sweep.json').read_text())
    assert [row['count'] for row in paper['seeds']] == [2, 2]
    assert (folder / 'runs' / 'paper.png').read_bytes().startswith(b'\x89PNG')
    accuracy = run(
        [sys.executable, '-m', 'experiments.evaluate', '--workdir=runs/digits', '--format=json'],
        folder,
    )
    assert json.loads(accuracy.stdout)['top1'] >= 0.975
