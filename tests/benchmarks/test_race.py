"""The race: one recipe for both sides, medians of the finished rounds, and phases that add up."""

import json
import runpy
import time

import numpy as np
import pytest

from benchmarks import race
from vision.core.errors import UserError
from vision.training.schedules import make_schedule


@pytest.fixture
def mnist_like(tmp_path):
    """A folder of IDX files: 400 images that are easy to learn, and 200 test images."""
    rng = np.random.default_rng(0)
    for prefix, count in (('train', 400), ('t10k', 200)):
        labels = rng.integers(0, 10, count, np.uint8)
        images = rng.integers(0, 30, (count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 4, 4:24] = 250
        for kind, array in (('images', images), ('labels', labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
            file = tmp_path / f'{prefix}-{kind}-idx{array.ndim}-ubyte'
            file.write_bytes(header + array.tobytes())
    return str(tmp_path)


def _reading(seconds):
    return {'seconds': seconds, **dict.fromkeys(race.PHASES, 1.0), 'epochs': 3, 'top1': [0.99]}


def test_in_turn_and_only_who_arrived_is_in_the_medians(monkeypatch, mnist_like):
    readings = iter([8.0, 30.0, None, 20.0, 12.0, 10.0])
    calls = []

    def run(words, env=None):
        calls.append(('peer' if 'torch_race.py' in words[1] else 'ours', words[-2], env))
        return _reading(next(readings))

    monkeypatch.setattr(race, 'run_process', run)
    result = race.race(mnist_like, 'torchvision', 'python', 3, {'A': 'b'})
    sides = [('ours', None), ('peer', {'A': 'b'})]
    assert calls == [(name, str(seed), env) for seed in range(3) for name, env in sides]
    assert result['ours']['seconds'] == 10.0 and result['ours']['reached'] == '2 of 3'
    assert result['peer']['seconds'] == 20.0 and result['ratio'] == 2.0

    monkeypatch.setattr(race, 'run_process', lambda words, env: _reading(None))
    result = race.race(mnist_like, 'torchvision', 'python', 1)
    assert result['ratio'] is None and result['ours']['reached'] == '0 of 1'


def test_ours_stops_when_it_is_accurate_and_its_seconds_add_up(mnist_like, tmp_path):
    file = race.write_arrays(mnist_like, tmp_path)
    recipe = race.RECIPE | {'batch_size': 20, 'epochs': 8, 'lr': 0.02}
    reading = json.loads(race.run(str(file), json.dumps(recipe), '0', str(time.time() - 5)))
    assert reading['top1'][-1] >= 0.99 and all(top1 < 0.99 for top1 in reading['top1'][:-1])
    assert len(reading['top1']) == reading['epochs'] < 8
    assert sum(reading[phase] for phase in race.PHASES) == pytest.approx(reading['seconds'])
    assert reading['import'] >= 5 and all(reading[phase] > 0 for phase in race.PHASES)


@pytest.mark.slow
def test_who_does_not_arrive_has_no_time(mnist_like, tmp_path):
    file = race.write_arrays(mnist_like, tmp_path)
    recipe = race.RECIPE | {'batch_size': 20, 'epochs': 1, 'lr': 0.0}
    reading = json.loads(race.run(str(file), json.dumps(recipe), '0', str(time.time())))
    assert reading['seconds'] is None and len(reading['top1']) == 1


def test_both_have_the_same_rates():
    factor = runpy.run_path(str(race._PEER))['rate_factor']
    config = race._config('file', race.RECIPE, 0)
    epoch = 60_000 // race.RECIPE['batch_size']
    total = epoch * race.RECIPE['epochs']
    schedule = make_schedule(
        config.schedule,
        config.optimizer.lr,
        total,
        lambda text, key: round(float(text.split()[0]) * epoch),
    )
    warmup = round(race.RECIPE['warmup_epochs'] * epoch)
    for step in (0, 1, warmup - 1, warmup, warmup + 1, total // 2, total - 1):
        expected = race.RECIPE['lr'] * factor(step, warmup, total)
        assert schedule(step) == pytest.approx(expected, abs=1e-7)


def test_what_is_compiled_within_something_compiled_counts_once(monkeypatch):
    compilations = race.Compilations()
    now = iter([1.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr(race.time, 'perf_counter', lambda: next(now))
    for event, seconds in [('trace', 0.5), ('trace', 0.5), ('trace', 4.5), ('backend', 2.0)]:
        compilations._add(f'/jax/core/compile/{event}_duration', seconds)
    compilations._add('/jax/checkpoint/write', 100.0)
    assert compilations.take() == 4.5 + 2.0 and compilations.take() == 0


def test_another_peer_is_the_users_mistake():
    with pytest.raises(UserError, match='keras'):
        race.race(None, 'keras', None, 1)
