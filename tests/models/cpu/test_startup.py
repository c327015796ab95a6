"""oneDNN and huge pages: commands enable them, imports do not."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPO, environment
from vision.core.startup import tune
from vision.models.cpu import startup


def test_flags_of_xla_are_added_for_tested_versions_only(monkeypatch):
    flag = startup._ONEDNN_FLAG
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '0.12.3')
    for before, after in [
        (None, f'{flag}=true'),
        ('--xla_a=1', f'--xla_a=1 {flag}=true'),
        (f'{flag}=false', f'{flag}=false'),
    ]:
        monkeypatch.setenv('XLA_FLAGS', before or '')
        startup.use_onednn()
        assert os.environ['XLA_FLAGS'] == after
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '0.13.0')
    monkeypatch.setenv('XLA_FLAGS', '')
    startup.use_onednn()
    assert os.environ['XLA_FLAGS'] == ''


def test_one_variable_switches_the_flags_off(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.setenv(startup.SWITCH, '0')
    tune()
    assert os.environ['XLA_FLAGS'] == ''


PROBE = """
import json, os, sys
print(json.dumps([sys.orig_argv[1:], sys.argv, os.environ.get('GLIBC_TUNABLES'), os.getpid()]))
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc')
@pytest.mark.parametrize(
    'commands, set_by_user, expected',
    [
        ('experiments', {}, 'glibc.malloc.hugetlb=1'),
        ('benchmarks', {}, 'glibc.malloc.hugetlb=1'),
        ('experiments', {'GLIBC_TUNABLES': 'glibc.malloc.check=0'}, 'glibc.malloc.check=0'),
        ('experiments', {startup.SWITCH: '0'}, None),
    ],
)
def test_a_command_asks_for_huge_pages_and_stays_what_it_was(
    tmp_path, commands, set_by_user, expected
):
    package = tmp_path / commands
    package.mkdir()
    (package / '__init__.py').write_text((REPO / commands / '__init__.py').read_text())
    (package / 'probe.py').write_text(PROBE)
    env = environment(PYTHONPATH=f'{tmp_path}:{REPO}', **set_by_user)
    words = ['-W', 'error', '-m', f'{commands}.probe', '--a=b c', '']
    process = subprocess.Popen(
        [sys.executable, *words], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    original, argv, tunables, pid = json.loads(process.communicate()[0])
    assert original == words and argv[1:] == words[4:] and tunables == expected
    assert pid == process.pid  # signals find it


def test_importing_the_commands_restarts_nothing_and_leaves_jax_alone():
    code = (
        'import sys; sys.argv[0] = "x"; import experiments, os\n'
        'assert "GLIBC_TUNABLES" not in os.environ and "jax" not in sys.modules'
    )
    env = environment()
    env.pop('GLIBC_TUNABLES', None)
    subprocess.run([sys.executable, '-c', code], env=env, cwd=REPO, check=True)
