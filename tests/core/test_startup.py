"""What a command sets before JAX is used, and what importing leaves alone."""

import subprocess
import sys

from tests.conftest import REPO, environment


def cache_of(code, **env):
    """Where JAX keeps what it compiles, after this code, in a process of its own."""
    clean = {k: v for k, v in environment(**env).items() if env.get(k) or k[:9] != 'JAX_COMPI'}
    code += '\nimport jax; print(repr(jax.config.jax_compilation_cache_dir))'
    done = subprocess.run(
        [sys.executable, '-c', code], env=clean, cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USE = 'from vision.core.startup import use_compilation_cache as use; use()'


def test_the_cache_is_the_users_and_can_be_moved_or_switched_off(tmp_path, monkeypatch):
    home = str(tmp_path / 'home')
    assert cache_of(USE, XDG_CACHE_HOME=home) == repr(f'{home}/vision-jax')
    # Also where JAX was imported before.
    assert cache_of(f'import jax; {USE}', XDG_CACHE_HOME=home) == repr(f'{home}/vision-jax')
    mine = str(tmp_path / 'mine')
    assert cache_of(USE, JAX_COMPILATION_CACHE_DIR=mine, XDG_CACHE_HOME=home) == repr(mine)
    off = f'import os; os.environ["JAX_COMPILATION_CACHE_DIR"] = ""; {USE}'
    assert cache_of(off, XDG_CACHE_HOME=home) in ("''", 'None')
    # A home that cannot be written to is no reason to stop.
    (tmp_path / 'file').write_text('')
    assert cache_of(USE, XDG_CACHE_HOME=str(tmp_path / 'file')) == 'None'


def test_importing_sets_nothing(tmp_path):
    code = 'import vision.training, vision.core.cli, vision.core.startup'
    assert cache_of(code, XDG_CACHE_HOME=str(tmp_path)) == 'None'
    assert list(tmp_path.iterdir()) == []
