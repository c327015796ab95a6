"""What a command sets before JAX is used; importing `vision` sets none of it."""

import os
import sys
from pathlib import Path

from vision.core.errors import unknown

DEBUG = ('nans', 'no_jit', 'transfers')


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


def debug(what: list[str]) -> None:
    """Switches JAX's debugging on.

    Args:
      what: of DEBUG. `nans` stops at the first operation that makes a NaN, and names it; `no_jit` runs each
        operation by itself, so that `print` and a debugger work in a step; `transfers` refuses
        transfers between host and device that were not asked for.

    Raises:
      UserError: something else.
    """
    for name in what:
        if name not in DEBUG:
            raise unknown('--debug', name, DEBUG)
    import jax

    if 'nans' in what:
        jax.config.update('jax_debug_nans', True)
    if 'no_jit' in what:
        jax.config.update('jax_disable_jit', True)
    if 'transfers' in what:
        jax.config.update('jax_transfer_guard', 'disallow')
