"""What a command sets before JAX is used; importing `vision` sets none of it."""

import importlib.metadata
import os
import sys
from pathlib import Path

# `VISION_TUNE=0` leaves the process as it is. (`VISION_FAST=0` is the switch of the fast forms of
# layers, in `vision.models.fast`: they need none of this, but gain from it.)
SWITCH = 'VISION_TUNE'

# The versions of jaxlib with which oneDNN was tried, by their first two numbers: XLA ends a process
# that gives it a flag it does not know. On 0.10 the flag changes nothing.
_ONEDNN_VERSIONS = ('0.12',)
_ONEDNN_FLAG = '--xla_cpu_experimental_onednn_custom_call'


def tune() -> None:
    """Gives XLA's CPU backend oneDNN where that was tested; to be called before JAX has a backend.

    A user's own value of the flag in XLA_FLAGS stays as it is.
    """
    if os.environ.get(SWITCH) == '0':
        return
    _use_onednn()


def _use_onednn() -> None:
    version = importlib.metadata.version('jaxlib').split('.')[:2]
    flags = os.environ.get('XLA_FLAGS', '')
    if '.'.join(version) in _ONEDNN_VERSIONS and _ONEDNN_FLAG not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {_ONEDNN_FLAG}=true'.strip()


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
