"""What a command sets before JAX is used; importing `vision` sets none of it."""

import os
import sys
from pathlib import Path


def use_compilation_cache() -> None:
    """Keeps what XLA compiles in the user's cache folder, so that a second start is quick.

    Where it is: JAX_COMPILATION_CACHE_DIR, if that is set (empty: nowhere), otherwise
    `vision-jax` in XDG_CACHE_HOME or ~/.cache. The bits of a run do not depend on it.
    """
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = Path(home) / 'vision-jax'
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: compile each time
        return
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    if 'jax' in sys.modules:
        sys.modules['jax'].config.update('jax_compilation_cache_dir', str(folder))
