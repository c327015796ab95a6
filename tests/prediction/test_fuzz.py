"""Mutated images under a memory limit are answered or refused; nothing crashes or hangs."""

import json

import pytest

from tests.prediction import fuzz
from tests.processes import run_module


@pytest.mark.parametrize('count', [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_each_is_answered_or_refused(count, tmp_path):
    done = run_module('tests.prediction.fuzz', tmp_path / 'images', count)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found['answered'] + found['refused'] == found['images'] == count
    assert found['answered'] > 0.1 * count and found['refused'] > 0.1 * count


def test_the_same_seed_makes_the_same_images(tmp_path):
    for name in 'ab':
        fuzz.write(tmp_path / name, 40, seed=3)
    one, other = ([p.read_bytes() for p in sorted((tmp_path / n).iterdir())] for n in 'ab')
    assert one == other and len(set(one)) > 30
