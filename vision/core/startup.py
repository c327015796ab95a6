"""What a command sets before JAX is used; importing `vision` sets none of it."""

import ctypes
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
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as in glibc's malloc.h


def tune() -> None:
    """Keeps freed memory in the process, and gives XLA's CPU backend oneDNN where that was tested.

    To be called before JAX has a backend. What the user has set of either stays as it is: a
    MALLOC_* variable or GLIBC_TUNABLES, another allocator, or the flag in XLA_FLAGS.
    """
    if os.environ.get(SWITCH) == '0':
        return
    _keep_memory()
    _use_onednn()


def _keep_memory() -> None:
    """Lets glibc keep large buffers for the next step.

    By default each step maps its buffers afresh and the kernel clears every page of them: a ReLU of
    51 MB takes 13.6 ms, and 1.7 ms if they are kept.
    """
    set_by_user = ('MALLOC_', 'GLIBC_TUNABLES', 'LD_PRELOAD')
    if sys.platform != 'linux' or any(name.startswith(set_by_user) for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'gnu_get_libc_version'):  # other C libraries have no such thing to set
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


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
