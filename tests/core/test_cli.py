"""Commands: signals, unknown flags, invalid values and folders that are not writable."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from ml_collections import config_flags

from tests.conftest import REPO
from tests.processes import Process
from vision.core import cli
from vision.core.config import default_config
from vision.core.config_mistakes import explained
from vision.core.errors import UserError
from vision.studies.grid import with_values

SCRIPT = """
import gc, hashlib, sys, threading, time
from absl import logging
from vision.core import cli, startup
from vision.core.errors import UserError
startup._GRACE = 0.3 if sys.argv[1] != 'collecting' else 60

def main(argv):
    print('running', flush=True)
    if argv[1] == 'compiling':  # code that looks at no signal for an hour, as XLA's
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
    if argv[1] == 'waiting':
        thread = threading.Thread(target=time.sleep, args=(60,))
        thread.start()
    if argv[1] in ('swallowing', 'judging'):
        try:
            time.sleep(60)
        except BaseException as e:
            error = RuntimeError if argv[1] == 'swallowing' else UserError
            raise error('the file is damaged: the library failed to read it') from e
    if argv[1] == 'collecting':  # in a callback of the collector, out of which nothing is raised
        gc.callbacks.append(lambda phase, info: time.sleep(2))
        gc.collect()
    if argv[1] == 'denied':
        logging.warning('%d files are skipped', 3)
        open('/proc/version/x', 'w')
    time.sleep(60)

cli.run(main)
"""


def start(what):
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, what], cwd=REPO, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(REPO)},
    )  # fmt: skip
    assert process.stdout.readline() == 'running\n', process.stderr.read()
    return process


@pytest.mark.parametrize(
    ('what', 'signum', 'code'),
    [
        ('compiling', signal.SIGTERM, 143),
        ('waiting', signal.SIGINT, 130),
        ('swallowing', signal.SIGTERM, 143),
        ('judging', signal.SIGINT, 130),
        ('collecting', signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_a_command_within_seconds_whatever_it_does(what, signum, code):
    process = start(what)
    began = time.monotonic()
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, '')
    assert time.monotonic() - began < 10


def test_a_place_that_cannot_be_written_to_is_one_line_and_so_is_a_warning():
    process = start('denied')
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == 'warning: 3 files are skipped\nerror: /proc/version/x: Not a directory\n'


@pytest.fixture
def config_flag(monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string('workdir', None, '', flag_values=values)
    flags.DEFINE_multi_string('config', None, '', flag_values=values)
    monkeypatch.setattr(cli.flags, 'FLAGS', values)
    return values


@pytest.mark.parametrize(
    ('name', 'says'),
    [
        ('lr', '--config.optimizer.lr?'),
        ('batch_size', '--config.training.batch_size or --config.evaluation.batch_size?'),
        ('optimizer.lr', '--config.optimizer.lr?'),
        ('wrkdir', '--workdir?'),
        ('learning-rate', '--config.optimizer.lr?'),
        ('epochs', '--config.training.duration?'),
        ('WorkDir', '--workdir?'),
        ('output', 'there is no flag --output; see --help'),  # absl's own flags are not suggested
        ('zzzzqq', 'there is no flag --zzzzqq; see --help'),
    ],
)
def test_a_flag_that_is_not_there_names_the_key_that_is_meant(config_flag, name, says):
    error = flags.UnrecognizedFlagError(name)
    assert explained(error, []).endswith(says)


COMMANDS = [
    *(f'experiments.{p.stem}' for p in sorted((REPO / 'experiments').glob('*.py'))
      if p.stem not in ('__init__', 'benchmark')),
    'benchmarks',
]  # fmt: skip


def test_help_has_two_examples_and_the_commands_own_flags():
    """And what is asked for wrongly names what is meant; all commands at once, as each has its imports to do."""
    helps = {name: Process(name, '--help') for name in COMMANDS}
    full = Process('experiments.models', '--helpfull')
    wrong = {
        (name, flag): Process(name, flag)
        for name, flag in [
            *((name, '--formt=json') for name in COMMANDS if name not in ('experiments.demo', 'experiments.serve')),
            ('experiments.demo', '--wokdir=x'), ('experiments.predict', '--top-k=3'),
            ('experiments.search', '--treshold=1'), ('experiments.train', '--sead=1'),
            ('experiments.reproduce', '--sead=1'), ('benchmarks', '--peer-pyton=x'),
        ]
    }  # fmt: skip
    for name, process in helps.items():
        done = process.wait()
        assert (done.returncode, done.stderr) == (0, ''), name
        usage, _, rest = done.stdout.partition('Examples:')
        examples, _, own = rest.partition('\n\n')
        assert f'python -m {name} ' in usage and examples.count(f'python -m {name}') >= 2, name
        assert '--helpfull' in own and '--pdb' not in own and 'absl' not in done.stdout
        assert max(map(len, own.splitlines())) <= 120
        missing = [line for line in own.splitlines() if re.fullmatch(r'  --\S+', line.rstrip())]
        assert all(own.split(line)[1].startswith('\n' + ' ' * 26) for line in missing)
    assert '--[no]report' in helps['experiments.evaluate'].stdout
    assert '(default: 10)' in helps['experiments.search'].stdout
    assert full.wait().returncode == 0 and '--pdb' not in helps['experiments.models'].stdout
    assert 'verbosity' in full.stdout
    meant = {'--formt': '--format', '--wokdir': '--workdir', '--top-k': '--top_k', '--peer-pyton': '--peer_python',
             '--treshold': '--threshold'}  # fmt: skip
    for (name, flag), process in wrong.items():
        done, flag = process.wait(), flag.partition('=')[0]
        known = meant.get(flag, '--seeds' if name.endswith('reproduce') else '--config.seed')
        says = f'error: there is no flag {flag}; did you mean {known}?\n'
        assert (done.returncode, done.stdout, done.stderr) == (2, '', says)


@pytest.mark.parametrize(
    ('key', 'text', 'says'),
    [
        ('optimizer.lr', 'a', r"optimizer.lr='a' has the wrong type; it must be a number"),
        ('seed', 'x', 'it must be a whole number'),
        ('model.norm', 'maybe', 'model.norm=maybe cannot be set: model.norm is True'),
        ('preprocess.mean[7]', '1', 'cannot be set'),
        ('model', 'vgg11', 'model is a section; write .* as model.name=…'),
    ],
)
def test_a_value_that_a_key_cannot_have_is_one_line_of_ours(key, text, says):
    config = default_config()
    config.model.norm = True
    with pytest.raises(UserError, match=says):
        with_values(config, {key: text})


@pytest.mark.parametrize(
    ('code', 'says'),
    [
        ('def get_config(:', 'SyntaxError: .*line 1'),
        ('import no_such_module', "No module named 'no_such_module'"),
        ('1 / 0', r'ZeroDivisionError: division by zero \(own.py, line 1\)'),
        (
            'def get_config():\n    return wrong',
            r"NameError: name 'wrong' is not defined \(own.py, line 2\)",
        ),
        ('x = 1', 'own.py has no function get_config'),
        ('def get_config():\n    return 3', 'must return a ConfigDict, not int'),
        (
            'from vision.core.config import default_config as get_config',
            "training.batch_size='x' .* whole number",
        ),
    ],
)
def test_what_is_wrong_with_a_config_file_is_one_line(tmp_path, monkeypatch, code, says):
    (tmp_path / 'own.py').write_text(code + '\n')
    command = ['train', f'--config={tmp_path}/own.py', '--config.training.batch_size=x']
    monkeypatch.setattr(sys, 'argv', command)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    with pytest.raises(Exception) as raised:
        values(command)
        values.config.keys()
    assert re.search(says, explained(raised.value, command)) and '\n' not in explained(
        raised.value, command
    )
