"""What a command sets before JAX is used; importing `vision` sets none of it."""

import os
import sys
import warnings
from pathlib import Path

# `VISION_TUNE=0` leaves the process as it is. (`VISION_FAST=0` is the switch of the fast forms of
# layers, in `vision.models.fast`: they need none of this, but gain from it.)
SWITCH = 'VISION_TUNE'

# The versions of jaxlib with which oneDNN was tried, by their first two numbers: XLA ends a process
# that gives it a flag it does not know. On 0.10 the flag changes nothing.
_ONEDNN_VERSIONS = ('0.12',)
_ONEDNN_FLAG = '--xla_cpu_experimental_onednn_custom_call'

# glibc's variable, and ours that says who set it.
_TUNABLES, _OURS = 'GLIBC_TUNABLES', 'VISION_SET'


def tune() -> None:
    """Gives XLA's CPU backend oneDNN where that was tested; to be called before JAX has a backend.

    A user's own value of the flag in XLA_FLAGS stays as it is.
    """
    if os.environ.get(SWITCH) == '0':
        return
    _use_onednn()


def use_huge_pages() -> None:
    """Starts this process again with glibc asking for huge pages, which it must be told at its start.

    A step's large arrays are new memory each time, and the kernel clears it page by page: with
    pages of 2 MB in place of 4 kB that costs a step of ResNet-50 a sixth less time (measured:
    `docs/performance.md`). To be called before anything is done or imported. Not on other
    systems than Linux; a user's own GLIBC_TUNABLES stay as they are.
    """
    if sys.platform != 'linux' or os.environ.get(SWITCH) == '0' or _TUNABLES in os.environ:
        return
    environment = os.environ | {_TUNABLES: 'glibc.malloc.hugetlb=1', _OURS: _TUNABLES}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def shipped_environment() -> dict[str, str]:
    """The environment without what `use_huge_pages` has put there: for a peer, as its users run it."""
    return {k: v for k, v in os.environ.items() if k not in (_OURS, os.environ.get(_OURS))}


def _use_onednn() -> None:
    import importlib.metadata

    version = importlib.metadata.version('jaxlib').split('.')[:2]
    flags = os.environ.get('XLA_FLAGS', '')
    if '.'.join(version) in _ONEDNN_VERSIONS and _ONEDNN_FLAG not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {_ONEDNN_FLAG}=true'.strip()
        # XLA cannot serialise oneDNN's convolutions: such a program is compiled at each start.
        warnings.filterwarnings('ignore', 'Error writing persistent compilation cache.*bad_alloc')


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
