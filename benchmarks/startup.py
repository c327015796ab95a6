"""Start-up time from the start of a process to its first step, without and with a cache."""

import os
import subprocess
import tempfile
import time
from typing import Any

import jax

from benchmarks.loop import synthetic_config
from benchmarks.turns import python
from vision.training.hooks import Hook
from vision.training.loop import train

_START = """
from benchmarks.startup import take_one_step
take_one_step(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
"""


def startup(model: str = 'resnet50', image_size: int = 224, batch_size: int = 2) -> dict[str, Any]:
    """Measures the seconds from the start of a process to its first training step.

    Returns:
      `cold`: with an empty compilation cache. `warm`: with the cache that the first process filled.
      `ratio`: warm over cold.
    """
    with tempfile.TemporaryDirectory() as cache:
        # The project's compilation cache is below XDG_CACHE_HOME.
        seconds, env = [], os.environ | {'XDG_CACHE_HOME': cache}
        env.pop('JAX_COMPILATION_CACHE_DIR', None)
        words = [*python(_START), model, str(image_size), str(batch_size), cache]
        # The first process fills the cache, the second one reads it.
        for _ in range(2):
            began = time.perf_counter()
            subprocess.run(words, env=env, check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
    return {
        'model': model,
        'cold': seconds[0],
        'warm': seconds[1],
        'ratio': seconds[1] / seconds[0],
    }


class _First(Hook):
    """Hook that ends the process after its first step."""

    def after_step(self, step: int, batch: Any, metrics: Any) -> None:
        # Exit at once: the time to shut down does not belong to the measurement.
        jax.block_until_ready(metrics)
        os._exit(0)


def take_one_step(model: str, image_size: int, batch_size: int, folder: str) -> None:
    """Starts a run in a new folder below `folder`, and ends the process after the first step."""
    workdir = tempfile.mkdtemp(dir=folder)
    train(synthetic_config(model, image_size, batch_size), workdir, [_First()])
