"""The README's commands, read out of the README, run in their order."""

import json
import os
import re
import shlex

import pytest

from tests.conftest import REPO, run_module
from tests.tiers import quick

README = (REPO / 'README.md').read_text()
BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', README, re.M | re.S)

# In the quick tests all runs are shorter (the first: `digits_run`), by flags that come after their
# own.
SHORT = {
    'experiments.train': (
        '--config.training.duration=2 epochs',
        '--config.schedule.warmup=0 steps',
        '--config.preprocess.train=resize(32)',
        '--config.training.ema_decay=0',
    ),
    'experiments.sweep': (
        '--config.training.duration=2 steps',
        '--config.training.eval_every=2 steps',
        '--config.training.ema_decay=0',
        '--config.schedule.warmup=0 steps',
        '--config.preprocess.train=',
        '--grid=model.excite=False,True;seed=0',
    ),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, digits_run):
    """A clone as its user would have it after the first command."""
    root = tmp_path_factory.mktemp('clone')
    for name in ('configs', 'docs'):
        (root / name).symlink_to(REPO / name)
    (root / 'runs').mkdir()
    (root / 'runs' / 'digits').symlink_to(digits_run)
    return root


def run(words, folder):
    done = run_module(*words, cwd=folder, PYTHONPATH=f'{folder}{os.pathsep}{REPO}')
    assert done.returncode == 0, f'{words}\n{done.stderr}'
    return done.stdout


def steps():
    """Each command of the README, in order: words for `python -m`, or (file name, text) of a Python block."""
    for kind, text in BLOCKS:
        if kind == 'python':
            name = re.match(r'# (\w+\.py)\n', text)
            yield (name[1] if name else None, text)
        elif kind == 'bash':
            for line in text.strip().splitlines():
                # Not those that install: whoever runs this has installed.
                for part in line.split(' && '):
                    if part.startswith('python -m'):
                        yield shlex.split(part)[2:]


STEPS = list(steps())


def test_the_two_commands_come_first():
    shell = [text.strip() for kind, text in BLOCKS if kind == 'bash']
    assert shell[0].startswith('pip install -e . && python -m experiments.train')
    assert shell[1] == 'pip install -e ".[test]" && pytest -n 2'
    assert shell[1] in (REPO / '.ci' / 'run').read_text()


def test_the_first_command_reaches_what_it_should(digits_run):
    records = [json.loads(line) for line in (digits_run / 'metrics.jsonl').read_text().splitlines()]
    assert next(r['test/top1'] for r in records if 'test/top1' in r) >= 0.975


@pytest.mark.parametrize('number', range(1, len(STEPS)))
def test_each_further_block_runs(folder, number):
    step = STEPS[number]
    if isinstance(step, list):
        if quick() and step[0] in SHORT:
            run([*step, *SHORT[step[0]]], folder)
        else:
            run(step, folder)
        return
    name, text = step
    (folder / (name or f'block{number}.py')).write_text(text)
    if name is None:
        run([f'block{number}'], folder)


def test_they_were_all_there(folder):
    assert len(STEPS) >= 14 and STEPS[0][0] == 'experiments.train'
    paper = json.loads((folder / 'runs' / 'paper' / 'sweep.json').read_text())
    assert [row['count'] for row in paper['seeds']] == ([1, 1] if quick() else [2, 2])
    assert (folder / 'runs' / 'paper.png').read_bytes().startswith(b'\x89PNG')
