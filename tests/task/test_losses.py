"""Losses against PyTorch's values, and invariants of mixed targets and class weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiers import examples
from vision.core import config as config_lib
from vision.core.config import default_config
from vision.core.errors import UserError
from vision.task import losses

LOGITS = np.array([[(7 * i + 3 * k) % 5 - 2 + 0.25 * k for k in range(4)] for i in range(6)])
LABELS = np.array([0, 3, 1, 1, 2, 0])
WEIGHTS = (0.5, 1.0, 2.0, 0.25)

# torch 2.14.1, float64: CrossEntropyLoss(weight=…, label_smoothing=…)(LOGITS, LABELS), and the
# second row of its gradient.
TORCH = {
    (0.0, ()): (2.5173338583604274, [0.025902989, 0.0045012646, 0.1160891443, -0.1464933983]),
    (0.0, WEIGHTS): (1.6938014966851882, [0.0074008541, 0.0012860756, 0.0331683269, -0.0418552566]),
    (0.1, ()): (2.4923338583604275, [0.0217363227, 0.00033459794, 0.1119224776, -0.1339933983]),
    (0.1, WEIGHTS): (1.773599974698144, [0.0070551366, -0.0031221584, 0.0327658073, -0.0366987856]),
}


def criterion(**changes):
    return losses.make_criterion(default_config().loss.to_dict() | changes, 4)


def batch_loss(logits, targets, mask, loss):
    """Returns the mean that a step differentiates."""
    return (loss(logits, targets) * mask).sum() / loss.total_weight(targets, mask)


@pytest.mark.parametrize(('smoothing', 'weights'), TORCH)
def test_cross_entropy_is_torchs(smoothing, weights):
    of = criterion(label_smoothing=smoothing, class_weights=weights)
    # Two more rows that are masked and must not count.
    logits = jnp.asarray(np.concatenate([LOGITS, 9 * LOGITS[:2]]), jnp.float32)
    targets = jax.nn.one_hot(np.append(LABELS, [1, 2]), 4)
    mask = jnp.asarray([1.0] * 6 + [0.0] * 2)
    loss, gradient = jax.value_and_grad(batch_loss)(logits, targets, mask, of)
    expected, row = TORCH[smoothing, weights]
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient[1], row, atol=1e-7)
    np.testing.assert_array_equal(gradient[6:], 0)


@pytest.mark.parametrize('name', losses.LOSSES)
@pytest.mark.parametrize('weights', [(), WEIGHTS])
@examples(10)
@given(share=st.floats(0, 1), smoothing=st.floats(0, 0.9))
def test_the_loss_of_a_mixed_target_is_the_mix_of_the_losses(name, weights, share, smoothing):
    loss = criterion(name=name, label_smoothing=smoothing)
    loss = dataclasses.replace(loss, class_weights=weights)
    one, other = jax.nn.one_hot(LABELS, 4), jax.nn.one_hot(LABELS[::-1], 4)
    logits = jnp.asarray(LOGITS, jnp.float32)

    def of(targets):
        return loss(logits, targets)

    expected = share * of(one) + (1 - share) * of(other)
    np.testing.assert_allclose(
        of(share * one + (1 - share) * other), expected, rtol=1e-4, atol=1e-5
    )


def test_a_class_of_twice_the_weight_is_as_if_its_examples_came_twice():
    logits = jnp.asarray(LOGITS, jnp.float32)
    targets = jax.nn.one_hot(LABELS, 4)
    weighted = batch_loss(logits, targets, jnp.ones(6), criterion(class_weights=(1, 2, 1, 1)))
    again = np.append(np.arange(6), np.flatnonzero(LABELS == 1))
    twice = batch_loss(logits[again], targets[again], jnp.ones(8), criterion())
    assert float(weighted) == pytest.approx(float(twice), rel=1e-6)


def test_a_batch_in_which_nothing_counts_has_no_loss_and_no_gradient():
    targets = jax.nn.one_hot(LABELS, 4)
    for mask, weights in ((jnp.zeros(6), ()), (jnp.ones(6), (0.0, 0.0, 0.0, 0.0))):
        loss_of = dataclasses.replace(criterion(), class_weights=weights)
        loss, gradient = jax.value_and_grad(batch_loss)(
            jnp.asarray(LOGITS, jnp.float32), targets, mask, loss_of
        )
        assert float(loss) == 0 and not np.asarray(gradient).any()


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'name': 'hinge'}, 'softmax_cross_entropy'),
        ({'class_weights': (1.0, 2.0)}, '2 values for 4 classes'),
        ({'class_weights': (1.0, -1.0, 1.0, 1.0)}, '0 or more'),
        ({'class_weights': (0.0,) * 4}, 'not all 0'),
        ({'class_weights': (1.0, 'a', 1.0, 1.0)}, '0 or more'),
        ({'name': 'lenet_discriminative', 'j': 0.0}, 'above 0'),
        ({'name': 'lenet_discriminative', 'j': 'a'}, 'of type float'),
        ({'j': 1.0}, "unknown argument of loss 'softmax_cross_entropy'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, says):
    config = default_config()
    for key, value in changes.items():
        config.loss[key] = value
    with pytest.raises(UserError, match=says):
        losses.make_criterion(config_lib.resolve(config).loss.to_dict(), 4)


def test_sigmoid_cross_entropy_is_the_sum_over_classes_by_hand():
    targets = 0.9 * np.eye(4)[LABELS] + 0.025
    p = 1 / (1 + np.exp(-LOGITS))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(-1)
    got = losses.sigmoid_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(targets))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    far = losses.sigmoid_cross_entropy(jnp.array([[200.0, -200.0]]), jnp.array([[0.0, 1.0]]))
    np.testing.assert_allclose(far, 400, rtol=1e-6)


@pytest.mark.parametrize(('threshold', 'expected'), [(0.2, [1, 1, 0]), (0.0, [1, 1, 1])])
def test_a_threshold_sets_the_targets_of_a_mixed_image_to_1(threshold, expected):
    """timm's BinaryCrossEntropy: targets above the threshold, and the mean over the classes."""
    of = losses.make_criterion(
        default_config().loss.to_dict()
        | {'name': 'sigmoid_cross_entropy', 'threshold': threshold, 'average': True},
        3,
    )
    logits = np.array([[0.3, -1.2, 0.8]])
    found = of(jnp.float32(logits), jnp.array([[0.55, 0.35, 0.1]]))
    p, t = 1 / (1 + np.exp(-logits)), np.array([expected])
    np.testing.assert_allclose(
        found, -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(-1), rtol=1e-6
    )


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_focal_loss_is_the_papers(gamma):
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    right = log_p[np.arange(6), LABELS]
    got = losses.focal(jnp.asarray(LOGITS), jax.nn.one_hot(LABELS, 4), gamma)
    np.testing.assert_allclose(got, -((1 - np.exp(right)) ** gamma) * right, rtol=1e-5)
    sure = jax.grad(lambda x: losses.focal(x, jnp.eye(4)[:1], gamma).sum())(300 * jnp.eye(4)[:1])
    assert np.isfinite(sure).all()


def my_loss(logits, targets, power: float = 2.0):
    return (jnp.abs(jax.nn.softmax(logits) - targets) ** power).sum(-1)


def of_the_batch(logits, targets):
    return jnp.sum(logits * targets)


def test_a_users_own_loss_is_named_in_the_config():
    targets = jax.nn.one_hot(LABELS, 4)
    mine = criterion(name=f'{__name__}:my_loss', power=1.0)
    got = mine(jnp.asarray(LOGITS, jnp.float32), targets)
    np.testing.assert_allclose(got, np.abs(jax.nn.softmax(LOGITS) - targets).sum(-1), rtol=1e-5)
    with pytest.raises(UserError, match=r'must return one value per example, \[B\], not \[\]'):
        criterion(name=f'{__name__}:of_the_batch')
    with pytest.raises(UserError, match='must be a class or function, not tuple'):
        criterion(name=f'{__name__}:WEIGHTS')
    with pytest.raises(UserError, match='supports no class weights'):
        criterion(name='sigmoid_cross_entropy', class_weights=WEIGHTS)
