import math

import jax
import numpy as np
import pytest

from vision.task.losses import lenet_discriminative, lenet_mse

DISTANCES = np.array([[3.0, 1.0, 5.0], [0.5, 2.0, 9.0]], np.float32)
TARGETS = np.eye(3, dtype=np.float32)[[1, 2]]


def test_mse_is_the_distance_of_the_correct_class():
    np.testing.assert_array_equal(lenet_mse(-DISTANCES, TARGETS), [1.0, 9.0])


def test_mse_weighs_mixed_targets():
    mixed = np.array([[0.25, 0.75, 0.0]], np.float32)
    np.testing.assert_allclose(lenet_mse(-DISTANCES[:1], mixed), [0.25 * 3 + 0.75 * 1])


@pytest.mark.parametrize('j', [0.1, 1.0, 20.0])
def test_discriminative_is_equation_9(j):
    got = lenet_discriminative(-DISTANCES, TARGETS, j=j)
    for row, correct, value in zip(DISTANCES, (1, 2), got, strict=True):
        expected = row[correct] + math.log(math.exp(-j) + sum(math.exp(-y) for y in row))
        assert value == pytest.approx(expected, rel=1e-6)


def test_discriminative_pushes_near_wrong_classes_away_and_leaves_far_ones():
    gradient = jax.grad(lambda d: lenet_discriminative(-d, TARGETS[:1], j=1.0).sum())
    near, far = gradient(np.array([[1.0, 2.0, 60.0]], np.float32))[0][np.array([0, 2])]
    assert near < -0.3  # a larger distance lowers the loss
    assert abs(far) < 1e-20


def test_no_loss_overflows_for_distant_classes():
    logits = np.array([[-3e4, -1e4, 0.0]], np.float32)
    assert np.isfinite(lenet_discriminative(logits, TARGETS[:1])).all()
