"""The seconds from the start of a process to its first step, without and with compiled programs in the cache."""

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from benchmarks.loop import synthetic_config
from vision.training.hooks import Hook
from vision.training.loop import train

_START = """
import os, sys
os.environ['XDG_CACHE_HOME'] = sys.argv[3]
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
from vision.core import startup
startup.tune()
startup.use_compilation_cache()
from benchmarks.startup import take_one_step
take_one_step(sys.argv[1], int(sys.argv[2]), int(sys.argv[4]), sys.argv[3])
"""


def startup(model: str = 'resnet50', image_size: int = 224, batch_size: int = 2) -> dict[str, Any]:
    """Measures seconds from the start of a process to its first step, with an empty cache and again.

    Args:
      model: in the registry.
      image_size: pixels.
      batch_size: of the global batch.

    Returns:
      `cold` and `warm`, seconds, and `ratio`, warm over cold.
    """
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            words = [sys.executable, '-c', _START, model, str(image_size), cache, str(batch_size)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
    return {
        'model': model,
        'cold': seconds[0],
        'warm': seconds[1],
        'ratio': seconds[1] / seconds[0],
    }


class _First(Hook):
    """Ends the process with its first step."""

    def after_step(self, step: int, batch: Any, metrics: Any) -> None:
        jax.block_until_ready(metrics)
        os._exit(0)


def take_one_step(model: str, image_size: int, batch_size: int, folder: str) -> None:
    """Starts a run in a new folder within `folder`, and ends the process with its first step."""
    workdir = tempfile.mkdtemp(dir=folder)
    train(synthetic_config(model, image_size, batch_size), workdir, [_First()])
