"""The learning rate range test on curves with a known answer, and on a real run."""

import jax
import numpy as np
import pytest

from tests.training.tiny import tiny_config
from vision.core.errors import UserError
from vision.studies import lr_range
from vision.training.setup import setup


def test_the_suggestion_is_where_the_loss_falls_most_steeply():
    rates = np.geomspace(1e-6, 10, 400)
    x = np.log10(rates)
    falling = 2 - 1.5 / (1 + np.exp(-6 * (x + 2)))  # steepest at 1e-2
    losses = falling + np.where(x > 0, np.exp(3 * x) - 1, 0)  # and explodes beyond 1
    result = lr_range.analyse(rates, losses)
    # Smoothing delays the curve by about ten steps, a factor of 1.5 in the learning rate.
    assert 1e-2 <= result['suggestion'] <= 2e-2
    assert 0.5 <= result['lowest'] <= 2
    np.testing.assert_allclose(result['smoothed'][0], losses[0])


def test_smoothing_has_no_bias():
    np.testing.assert_allclose(lr_range.smooth(np.full(30, 3.0)), 3.0)


@pytest.mark.parametrize(
    ('losses', 'exploded'),
    [([2.0, 1.9, 1.8], False), ([1.0, float('nan')], True), ([1.0] * 5 + [90.0], True)],
)
def test_a_loss_that_explodes_ends_the_test(losses, exploded):
    assert lr_range.has_exploded(losses) == exploded


def test_a_loss_that_never_falls_is_said_so():
    with pytest.raises(UserError, match='never fell'):
        lr_range.analyse(np.geomspace(1e-6, 10, 50), np.linspace(1, 9, 50))


def test_digits(tmp_path):
    result = lr_range.find_lr(setup(tiny_config(model__name='lenet5')), steps=80)
    assert 1e-3 < result['suggestion'] < result['lowest'] < 3
    assert len(result['lr']) == len(result['loss']) == len(result['smoothed']) <= 80
    lr_range.draw(result, tmp_path / 'lr.png', 'digits')
    assert (tmp_path / 'lr.png').read_bytes().startswith(b'\x89PNG')
    jax.clear_caches()
