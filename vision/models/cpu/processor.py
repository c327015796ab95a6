"""What the processor can do, where a form of a layer depends on it."""

import functools
from pathlib import Path

import jaxlib


@functools.cache
def vector_bits() -> int:
    """The width of the processor's vectors: 512 with AVX-512, else 256; 0 where Linux does not tell."""
    about = Path('/proc/cpuinfo')
    return (512 if 'avx512f' in about.read_text() else 256) if about.exists() else 0


def has_avx512() -> bool:
    """Whether vectors are 512 bits wide, as far as is known."""
    return vector_bits() == 512


def has_ynn() -> bool:
    """Whether XLA hands small convolutions and products to YNNPACK: seen in jaxlib 0.12, not in 0.10."""
    return tuple(map(int, jaxlib.__version__.split('.')[:2])) >= (0, 12)
