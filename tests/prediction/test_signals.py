"""Ctrl-C, SIGTERM and a closed pipe end the commands of prediction at once, without a traceback."""

import signal
import subprocess
import time

import pytest
from PIL import Image

from tests.processes import REPO, Process, command

COMMANDS = {
    'predict': lambda run, folder: [
        f'--workdir={run}',
        '--format=jsonl',
        *[folder / 'x.png'] * 20_000,
    ],
    'export': lambda run, folder: [f'--workdir={run}', f'--output={folder}/model'],
}


def end(process, signum):
    process.send_signal(signum)
    started = time.monotonic()
    done = process.wait(20)
    assert time.monotonic() - started < 10
    assert done.returncode == 128 + signum, done.stderr
    assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_predict_among_its_answers(workdir, digits, tmp_path, signum):
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'x.png')
    process = Process('experiments.predict', *COMMANDS['predict'](workdir, tmp_path))
    process.wait_for(lambda: process.stdout)
    end(process, signum)


@pytest.mark.parametrize('seconds', [0.1, 0.3])
@pytest.mark.parametrize('name', COMMANDS)
def test_while_a_run_is_read_and_compiled(workdir, digits, tmp_path, name, seconds):
    Image.fromarray(digits.images[0, ..., 0]).save(tmp_path / 'x.png')
    process = Process(f'experiments.{name}', *COMMANDS[name](workdir, tmp_path))
    assert process.poll(seconds) is None, process.stderr
    end(process, signal.SIGINT)
    assert not (tmp_path / 'model').exists()


@pytest.mark.parametrize('name', ['predict', 'export', 'demo'])
def test_a_reader_that_leaves_ends_it_without_a_word(name):
    """For example `--help | head`."""
    process = subprocess.Popen(
        command(f'experiments.{name}', '--help'),
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert said == '' and process.returncode in (0, 1)
