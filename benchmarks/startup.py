"""The seconds from the start of a process to its first step, without and with compiled programs in the cache."""

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
    """Measures seconds from the start of a process to its first step, with an empty cache and again.

    Args:
      model: in the registry.
      image_size: pixels.
      batch_size: of the global batch.

    Returns:
      `cold` and `warm`, seconds, and `ratio`, warm over cold.
    """
    with tempfile.TemporaryDirectory() as cache:
        seconds, env = [], os.environ | {'XDG_CACHE_HOME': cache}
        env.pop('JAX_COMPILATION_CACHE_DIR', None)
        words = [*python(_START), model, str(image_size), str(batch_size), cache]
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
    """Ends the process with its first step."""

    def after_step(self, step: int, batch: Any, metrics: Any) -> None:
        jax.block_until_ready(metrics)
        os._exit(0)


def take_one_step(model: str, image_size: int, batch_size: int, folder: str) -> None:
    """Starts a run in a new folder within `folder`, and ends the process with its first step."""
    workdir = tempfile.mkdtemp(dir=folder)
    train(synthetic_config(model, image_size, batch_size), workdir, [_First()])
