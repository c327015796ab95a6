"""Measurements in turn, in this process or in separate ones, and stored ones; for all benchmarks."""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vision.core.errors import UserError
from vision.core.text import json_text

Readings = dict[str, list[float]]

_START = """
import json, sys
from vision.core import startup
startup.tune()
startup.use_compilation_cache()
"""


def in_turn(measures: Mapping[str, Callable[[], float]], rounds: int) -> Readings:
    """Takes one reading of each measure per round and prints it; returns the readings by name.

    Measuring in turn spreads slow drifts of the machine evenly over all measures.
    """
    readings: Readings = {name: [] for name in measures}
    for i in range(1, rounds + 1):
        for name, measure in measures.items():
            readings[name].append(measure())
            print(f'round {i}/{rounds}, {name}: {readings[name][-1]:,.1f}', file=sys.stderr)
    return readings


def medians(readings: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the median over the rounds of each measure."""
    return {name: statistics.median(values) for name, values in readings.items()}


def median_ratio(readings: Readings, ours: str, other: str) -> float:
    """Returns the median over the rounds of the ratio of `ours` to `other`."""
    # The ratio within a round is less noisy than the ratio of the medians.
    rounds = zip(readings[ours], readings[other], strict=True)
    return statistics.median(a / b for a, b in rounds)


def python(code: str) -> list[str]:
    """Returns the command line of a Python process that is set up like a command and runs `code`.

    Args:
      code: Python code. Its arguments are in `sys.argv[1:]`, and `json` and `sys` are imported.
    """
    return [sys.executable, '-c', _START + code]


def run_process(words: Sequence[str], env: Mapping[str, str] | None = None) -> Any:
    """Runs a command and returns the JSON of the last line that it prints.

    Args:
      words: the command line.
      env: the environment variables; None for those of this process.

    Raises:
      UserError: the command cannot be started, or fails. The message is its last line on stderr.
    """
    # Libraries may print to stdout as well, so only the last line counts.
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    except (OSError, subprocess.CalledProcessError) as e:
        lines = (getattr(e, 'stderr', None) or str(e)).strip().splitlines()
        raise UserError(f'{words[0]}: {lines[-1]}') from None
    return json.loads(done.stdout.strip().splitlines()[-1])


class Store:
    """Readings on disk, so that a benchmark that was stopped continues where it was."""

    def __init__(self, folder: Path | None = None):
        """Reads the readings of an earlier call.

        Args:
          folder: the folder of `readings.jsonl`, made if missing; None to keep nothing.
        """
        self._file = None if folder is None else folder / 'readings.jsonl'
        self._readings: dict[str, Any] = {}
        text = self._file.read_text() if self._file is not None and self._file.exists() else ''
        for line in text.splitlines():
            # A killed process may have left half a line.
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                self._readings[json_text(entry['key'])] = entry['reading']

    def get(self, key: Sequence[Any], measure: Callable[[], Any]) -> Any:
        """Returns the stored reading of a key; takes and stores it if there is none.

        Args:
          key: names the measurement, as values of JSON.
          measure: takes the reading, a value of JSON.
        """
        name = json_text(key)
        if name not in self._readings:
            self._readings[name] = measure()
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open('a') as file:
                    # The line break comes first, because the last line may be half a line.
                    file.write('\n' + json_text({'key': key, 'reading': self._readings[name]}))
        return self._readings[name]
