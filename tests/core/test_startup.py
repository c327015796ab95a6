"""What a command sets before JAX is used, and what importing leaves alone."""

import importlib.metadata
import json
import os
import subprocess
import sys

import jax
import pytest

from tests.conftest import REPO, environment
from vision.core import startup
from vision.core.startup import use_compilation_cache

VARIABLE = 'JAX_COMPILATION_CACHE_DIR'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder of the user's, and nothing set."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv(VARIABLE)
    before = jax.config.jax_compilation_cache_dir
    yield tmp_path
    jax.config.update('jax_compilation_cache_dir', before)
    os.environ.pop(VARIABLE, None)


def test_the_cache_is_the_users(home):
    use_compilation_cache()
    assert os.environ[VARIABLE] == jax.config.jax_compilation_cache_dir == f'{home}/vision-jax'


@pytest.mark.parametrize('value', ['', '/elsewhere'])
def test_it_can_be_moved_and_switched_off(home, monkeypatch, value):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv(VARIABLE, value)
    use_compilation_cache()
    assert os.environ[VARIABLE] == value and jax.config.jax_compilation_cache_dir == before
    assert list(home.iterdir()) == []


def test_a_home_that_cannot_be_written_to_is_no_reason_to_stop(home, monkeypatch):
    (home / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(home / 'file'))
    use_compilation_cache()
    assert VARIABLE not in os.environ


def test_importing_sets_nothing_and_an_empty_variable_is_no_cache(tmp_path):
    code = (
        'import vision.core.cli, vision.core.startup, jax\n'
        'assert not jax.config.jax_compilation_cache_dir\n'
        'vision.core.startup.use_compilation_cache()\n'
        'assert not jax.config.jax_compilation_cache_dir\n'
        'jax.jit(lambda x: x + 1)(1)'
    )
    env = environment(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR='')
    done = subprocess.run([sys.executable, '-c', code], env=env, cwd=REPO, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_flags_of_xla_are_added_for_tested_versions_only(monkeypatch):
    flag = startup._ONEDNN_FLAG
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '0.12.3')
    for before, after in [
        (None, f'{flag}=true'),
        ('--xla_a=1', f'--xla_a=1 {flag}=true'),
        (f'{flag}=false', f'{flag}=false'),
    ]:
        monkeypatch.setenv('XLA_FLAGS', before or '')
        startup._use_onednn()
        assert os.environ['XLA_FLAGS'] == after
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '0.13.0')
    monkeypatch.setenv('XLA_FLAGS', '')
    startup._use_onednn()
    assert os.environ['XLA_FLAGS'] == ''


def test_one_variable_switches_the_flags_off(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.setenv(startup.SWITCH, '0')
    startup.tune()
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


def test_importing_the_commands_restarts_nothing_and_a_peer_gets_what_the_user_has(monkeypatch):
    code = 'import sys; sys.argv[0] = "x"; import experiments, os; assert "GLIBC_TUNABLES" not in os.environ'
    env = environment()
    env.pop('GLIBC_TUNABLES', None)
    subprocess.run([sys.executable, '-c', code], env=env, cwd=REPO, check=True)
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
    assert startup.shipped_environment() == dict(os.environ)  # it is the user's own
    monkeypatch.setenv('VISION_SET', 'GLIBC_TUNABLES')
    assert {'GLIBC_TUNABLES', 'VISION_SET'}.isdisjoint(startup.shipped_environment())
