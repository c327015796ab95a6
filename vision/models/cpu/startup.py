"""Processor features, and process settings that make XLA's CPU backend faster: oneDNN, huge pages.

Importing this module registers the settings with `vision.core.startup`, which the commands apply
before JAX starts. `VISION_TUNE=0` in the environment disables them. `VISION_FAST=0` disables the
fast forms of layers instead (`vision.models.cpu.fast`), which work without these settings.
"""

import functools
import os
import sys
import warnings
from pathlib import Path

from vision.core import startup

SWITCH = 'VISION_TUNE'

# Versions of jaxlib (major, minor) with which oneDNN was tested. XLA ends the process if it does
# not know a flag. On 0.10 the flag has no effect.
_ONEDNN_VERSIONS = ((0, 12),)
_ONEDNN_FLAG = '--xla_cpu_experimental_onednn_custom_call'

_TUNABLES = 'GLIBC_TUNABLES'  # glibc's variable


def use_onednn() -> None:
    """Enables oneDNN in XLA's CPU backend on tested versions; call it before JAX makes its backend.

    A user-defined value of the flag in XLA_FLAGS is kept.
    """
    if os.environ.get(SWITCH) == '0':
        return
    flags = os.environ.get('XLA_FLAGS', '')
    if _jaxlib() in _ONEDNN_VERSIONS and _ONEDNN_FLAG not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {_ONEDNN_FLAG}=true'.strip()
        # XLA cannot serialise oneDNN's convolutions, so such programs are compiled at each start.
        warnings.filterwarnings('ignore', 'Error writing persistent compilation cache.*bad_alloc')


def use_huge_pages() -> None:
    """Restarts this process with huge pages enabled in glibc, which reads the setting at its start.

    Each step allocates its large arrays again, and Linux clears this memory page by page. With
    pages of 2 MB instead of 4 kB, a step of ResNet-50 is a sixth faster (`docs/performance.md`).
    The function does nothing on other systems, and keeps a user-defined GLIBC_TUNABLES.
    """
    if sys.platform != 'linux' or os.environ.get(SWITCH) == '0' or _TUNABLES in os.environ:
        return
    startup.restart(**{_TUNABLES: 'glibc.malloc.hugetlb=1'})


@functools.cache
def vector_bits() -> int:
    """Returns the vector width of the processor: 512 with AVX-512, else 256; 0 if unknown."""
    about = Path('/proc/cpuinfo')
    return (512 if 'avx512f' in about.read_text() else 256) if about.exists() else 0


def has_avx512() -> bool:
    """Returns True if the processor is known to have AVX-512."""
    return vector_bits() == 512


def has_ynn() -> bool:
    """Returns True if XLA uses YNNPACK for small convolutions: jaxlib 0.12, not 0.10."""
    return _jaxlib() >= (0, 12)


def _jaxlib() -> tuple[int, ...]:
    """Returns jaxlib's version as (major, minor)."""
    from importlib import metadata

    return tuple(map(int, metadata.version('jaxlib').split('.')[:2]))


startup.register(at_start=use_huge_pages, before_jax=use_onednn)
