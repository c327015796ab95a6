"""What the processor can do, where a form of a layer depends on it."""

import functools
from pathlib import Path


@functools.cache
def has_avx512() -> bool:
    """Whether vectors are 512 bits wide; False where Linux does not tell."""
    about = Path('/proc/cpuinfo')
    return about.exists() and 'avx512f' in about.read_text()
