"""Settings that commands make before JAX is used, and that importing does not make."""

import os
import subprocess
import sys

import jax
import pytest

from tests.conftest import REPO, environment
from vision.core import startup
from vision.core.startup import use_compilation_cache

VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
SHORTEST = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder, with all variables unset."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv(SHORTEST, raising=False)
    names = 'jax_compilation_cache_dir', SHORTEST.lower()
    before = [getattr(jax.config, name) for name in names]
    yield tmp_path
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
        os.environ.pop(name.upper(), None)


@pytest.mark.parametrize('given', [None, '5.0'])
def test_the_cache_keeps_short_compilations_unless_the_user_says_otherwise(
    home, monkeypatch, given
):
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    if given is not None:
        monkeypatch.setenv(SHORTEST, given)
    use_compilation_cache()
    now = jax.config.jax_persistent_cache_min_compile_time_secs
    assert (now <= 0.1 and float(os.environ[SHORTEST]) == now) if given is None else now == before


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


def test_registered_settings_are_applied_at_their_time(monkeypatch):
    calls = []
    monkeypatch.setattr(startup, '_AT_START', [])
    monkeypatch.setattr(startup, '_BEFORE_JAX', [])
    startup.register(at_start=lambda: calls.append('start'), before_jax=lambda: calls.append('jax'))
    startup.at_start()
    assert calls == ['start']
    startup.tune()
    assert calls == ['start', 'jax']


def test_a_peer_gets_what_the_user_has(monkeypatch):
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
    assert startup.shipped_environment() == dict(os.environ)  # the user has set it
    monkeypatch.setenv('VISION_SET', 'GLIBC_TUNABLES')
    assert {'GLIBC_TUNABLES', 'VISION_SET'}.isdisjoint(startup.shipped_environment())
