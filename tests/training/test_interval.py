"""Reported throughput and waiting time of a run."""

import json
import math
import time

import pytest

from vision.training.records import Clock, Interval


class Computed:
    """A result of a step, ready or not."""

    def __init__(self, ready):
        self._ready = ready

    def is_ready(self):
        return self._ready


@pytest.mark.parametrize(
    ('running', 'waited'),
    [
        (None, True),  # before the first step
        ({'loss': Computed(True), 'top1': Computed(True)}, True),
        ({'loss': Computed(True), 'top1': Computed(False)}, False),
    ],
)
def test_only_a_wait_of_the_devices_is_one(running, waited):
    clock = Clock()
    with clock.waiting(running):
        time.sleep(0.02)
    clock.step()
    figures = clock.lap(batch_size=10)
    assert (figures['data_wait'] > 0.5) if waited else (figures['data_wait'] == 0)


def test_what_is_no_step_is_not_in_the_rate():
    clock = Clock()
    with clock.stopped():
        time.sleep(0.1)
    clock.step()
    assert clock.lap(batch_size=10)['images_per_second'] > 10 / 0.1


def test_sums_that_are_not_finite_are_kept_and_are_no_nan_in_json():
    interval = Interval()
    interval.add(
        1, {'finite': True, 'count': 4.0, 'loss': 2.0, 'distance': math.nan, 'far': math.inf}
    )
    assert interval.read() is None
    kept = json.loads(json.dumps(interval.to_json(), allow_nan=False))
    record = Interval(kept).record()
    assert record['train/loss'] == 0.5 and math.isnan(record['train/distance'])
    assert record['train/far'] == math.inf
