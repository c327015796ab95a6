"""--debug: runs with each switch, in this process."""

import traceback

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny import tiny_config
from vision.core.errors import UserError
from vision.training import train
from vision.training.diagnosis import debugging
from vision.training.hooks import Hook


@pytest.mark.slow
def test_nans_names_the_operation(tmp_path):
    config = tiny_config(optimizer__lr=1e18, schedule__warmup='1 steps')
    with pytest.raises(FloatingPointError) as raised, debugging(['nans']):
        train(config, tmp_path)
    frames = [frame.filename for frame in traceback.extract_tb(raised.tb)]
    assert any('vision/training/step.py' in name or 'vision/models' in name for name in frames)


def test_nothing_moves_between_host_and_device_unasked(tmp_path):
    with debugging(['transfers']) as hooks:
        assert train(tiny_config(), tmp_path, hooks)['test']['count'] == 360


class Smuggler(Hook):
    """Adds a host number to a device array, which is an implicit transfer."""

    def before_step(self, step):
        if step == 3:
            jnp.ones(3) + np.ones(3)


def test_what_moves_unasked_is_refused(tmp_path):
    with debugging(['transfers']) as hooks, pytest.raises(Exception, match='Disallowed'):
        train(tiny_config(training__stop_after='6 steps'), tmp_path, [*hooks, Smuggler()])


def test_an_unknown_switch():
    with pytest.raises(UserError, match="Did you mean 'nans'"), debugging(['nan']):
        pass


@pytest.mark.slow  # operations run one by one
def test_without_jit_the_step_is_python(tmp_path, monkeypatch):
    from vision.task import losses

    seen, smooth = [], losses.smooth_labels

    def look(targets, smoothing):
        seen.append(float(targets.sum()))  # fails for a traced value
        return smooth(targets, smoothing)

    monkeypatch.setattr(losses, 'smooth_labels', look)
    config = tiny_config(training__stop_after='2 steps', training__batch_size=4)
    config.preprocess.train = 'resize(32)'
    with debugging(['no_jit']):
        train(config, tmp_path)
    assert seen == [4.0, 4.0]
