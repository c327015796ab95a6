"""Readings that are taken in turn, in this process or in processes of their own: what the benchmarks share."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vision.core.errors import UserError

Readings = dict[str, list[float]]

_START = """
import json, sys
from vision.core import startup
startup.tune()
startup.use_compilation_cache()
"""


def in_turn(measures: Mapping[str, Callable[[], float]], rounds: int) -> Readings:
    """Takes a reading of each in every round, and prints it on stderr.

    Returns:
      The readings by name, in the order of the rounds.
    """
    readings: Readings = {name: [] for name in measures}
    for i in range(1, rounds + 1):
        for name, measure in measures.items():
            readings[name].append(measure())
            print(f'round {i}/{rounds}, {name}: {readings[name][-1]:,.1f}', file=sys.stderr)
    return readings


def medians(readings: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each, over the rounds."""
    return {name: statistics.median(values) for name, values in readings.items()}


def median_ratio(readings: Readings, ours: str, other: str) -> float:
    """The median of the rounds' ratios, `ours` over `other`."""
    rounds = zip(readings[ours], readings[other], strict=True)
    return statistics.median(a / b for a, b in rounds)


def python(code: str) -> list[str]:
    """The command line of a new process that starts as commands do, and then runs code of ours.

    Args:
      code: finds its words in `sys.argv[1:]`; `json` is imported.
    """
    return [sys.executable, '-c', _START + code]


def run_process(words: Sequence[str], env: Mapping[str, str] | None = None) -> Any:
    """Runs a measurement in a process of its own and returns the JSON of its last line.

    Args:
      words: of its command line.
      env: its environment; this process's if None.

    Raises:
      UserError: it cannot be started, or fails; with the last line of what it says.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    except (OSError, subprocess.CalledProcessError) as e:
        lines = (getattr(e, 'stderr', None) or str(e)).strip().splitlines()
        raise UserError(f'{words[0]}: {lines[-1]}') from None
    return json.loads(done.stdout.strip().splitlines()[-1])
