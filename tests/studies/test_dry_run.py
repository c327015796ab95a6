"""A dry run tells what a run would be, and writes nothing."""

import jax
import pytest

from tests.training.tiny import NET, tiny_config
from vision.core.errors import UserError
from vision.models.summary import summarise
from vision.studies.dry_run import dry_run, dry_run_text
from vision.training.setup import setup


def test_the_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    config.model.norm = False
    result, summary = dry_run(setup(config)), summarise(NET, 32, 1, 10, norm=False)
    assert result['parameters'] == summary.parameters
    assert result['gmacs'] * 1e9 == summary.macs
    assert (result['steps'], result['batch_size'], result['examples']) == (24, 32, 1077)
    # Parameters and momentum in float32; step, counters and key beside them.
    exact = 8 * summary.parameters
    assert exact <= result['state_bytes'] <= exact + 64
    assert result['step_bytes'] is None or result['step_bytes'] > result['state_bytes']
    assert result['estimated_seconds'] == pytest.approx(24 * result['step_seconds'])
    assert result['config']['optimizer']['lr'] == 0.05
    assert result['ops'] == {'train': 'on the device', 'eval': 'on the device'}
    text = dry_run_text(result)
    assert 'of training on the device; of evaluation on the device' in text
    assert '24 steps of 32 images' in text and f'{summary.parameters:,} parameters' in text
    assert list(tmp_path.iterdir()) == []
    assert jax.devices()


def test_what_would_stop_the_run_stops_it():
    with pytest.raises(UserError, match='lenet6'):
        dry_run(setup(tiny_config(model__name='lenet6')))
