"""The processor, and what makes XLA's CPU backend faster and must be set before JAX is used: oneDNN and huge pages.

Importing this module registers the settings with `vision.core.startup`, which commands apply. `VISION_TUNE=0` in the
environment leaves the process as it is. (`VISION_FAST=0` is the switch of the fast forms of layers, in
`vision.models.cpu.fast`: they need none of this, but gain from it.)
"""

import functools
import os
import sys
import warnings
from pathlib import Path

from vision.core import startup

SWITCH = 'VISION_TUNE'

# The versions of jaxlib with which oneDNN was tried, by their first two numbers: XLA ends a process
# that gives it a flag it does not know. On 0.10 the flag changes nothing.
_ONEDNN_VERSIONS = ((0, 12),)
_ONEDNN_FLAG = '--xla_cpu_experimental_onednn_custom_call'

_TUNABLES = 'GLIBC_TUNABLES'  # glibc's variable


def use_onednn() -> None:
    """Gives XLA's CPU backend oneDNN where that was tested; to be called before JAX has a backend.

    A user's own value of the flag in XLA_FLAGS stays as it is.
    """
    if os.environ.get(SWITCH) == '0':
        return
    flags = os.environ.get('XLA_FLAGS', '')
    if _jaxlib() in _ONEDNN_VERSIONS and _ONEDNN_FLAG not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {_ONEDNN_FLAG}=true'.strip()
        # XLA cannot serialise oneDNN's convolutions: such a program is compiled at each start.
        warnings.filterwarnings('ignore', 'Error writing persistent compilation cache.*bad_alloc')


def use_huge_pages() -> None:
    """Starts this process again with glibc asking for huge pages, which it must be told at its start.

    A step's large arrays are new memory each time, and the kernel clears it page by page: with
    pages of 2 MB in place of 4 kB that costs a step of ResNet-50 a sixth less time (measured:
    `docs/performance.md`). Not on other systems than Linux; a user's own GLIBC_TUNABLES stay as
    they are.
    """
    if sys.platform != 'linux' or os.environ.get(SWITCH) == '0' or _TUNABLES in os.environ:
        return
    startup.restart(**{_TUNABLES: 'glibc.malloc.hugetlb=1'})


@functools.cache
def vector_bits() -> int:
    """The width of the processor's vectors: 512 with AVX-512, else 256; 0 where Linux does not tell."""
    about = Path('/proc/cpuinfo')
    return (512 if 'avx512f' in about.read_text() else 256) if about.exists() else 0


def has_avx512() -> bool:
    """True if vectors are 512 bits wide, as far as is known."""
    return vector_bits() == 512


def has_ynn() -> bool:
    """True if XLA hands small convolutions and products to YNNPACK: seen in jaxlib 0.12, not in 0.10."""
    return _jaxlib() >= (0, 12)


def _jaxlib() -> tuple[int, ...]:
    """The first two numbers of its version."""
    from importlib import metadata

    return tuple(map(int, metadata.version('jaxlib').split('.')[:2]))


startup.register(at_start=use_huge_pages, before_jax=use_onednn)
