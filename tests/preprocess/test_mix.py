"""Mixup and CutMix: equal proportions of pixels and labels, masks, and the training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiers import split
from tests.training.test_step import Linear
from vision.core.config import default_config
from vision.core.mesh import make_mesh
from vision.core.state import MIX
from vision.preprocess.mix import mix
from vision.task import Settings, losses
from vision.task.classification import Classification
from vision.training.setup import make_recipe
from vision.training.step import init_state, make_train_step

B, H, W, K = 6, 12, 20, 6
KINDS = [(0.4, 0.0), (0.0, 1.0), (0.2, 1.0)]
mixed = jax.jit(mix, static_argnums=(4, 5))


@pytest.fixture
def batch():
    """A batch whose examples differ in colour and class, so that pixels show the proportion."""
    images = np.broadcast_to(np.arange(B, dtype=np.float32)[:, None, None, None], (B, H, W, 3))
    return jnp.asarray(images), jnp.eye(B, K), jnp.ones(B)


def shares(images):
    """Returns each example's share of its pixels; example i is mixed with example i − 1."""
    own, other = np.arange(B, dtype=np.float64), np.roll(np.arange(B), 1)
    return (np.asarray(images, np.float64).mean((1, 2, 3)) - other) / (own - other)


@pytest.mark.parametrize('kind', KINDS)
def test_labels_mix_in_the_pixels_proportion(batch, kind):
    images, targets, mask = batch
    seen = []
    for step in range(40):
        key = jax.random.fold_in(jax.random.key(0), step)
        new, labels = mixed(images, targets, mask, key, *kind)
        share = shares(new)
        expected = share[:, None] * np.eye(K) + (1 - share)[:, None] * np.roll(np.eye(K), 1, 0)
        np.testing.assert_allclose(labels, expected, atol=2e-6)
        np.testing.assert_allclose(share, share[0], atol=2e-6)
        seen.append(share[0])
    assert np.std(seen) > 0.1 and min(seen) >= -1e-6 and max(seen) <= 1 + 1e-6


def test_mixup_draws_from_beta(batch):
    share = jax.jit(jax.vmap(lambda key: mix(*batch, key, 0.4)[1][0, 0]))
    draws = share(jax.random.split(jax.random.key(1), 4000))
    from scipy import stats

    assert stats.kstest(np.asarray(draws), stats.beta(0.4, 0.4).cdf).pvalue > 0.001


def test_cutmix_pastes_one_box_of_the_images_aspect_and_leaves_the_rest(batch):
    images, targets, mask = batch
    uncut = 0
    for step in range(60):
        new, labels = mixed(images, targets, mask, jax.random.key(step), 0.0, 1.0)
        from_other = np.asarray(new[1, :, :, 0] == 0)
        assert set(np.unique(new[1])) <= {0.0, 1.0}
        rows, columns = from_other.any(1), from_other.any(0)
        np.testing.assert_array_equal(from_other, rows[:, None] & columns[None, :])
        height, width = rows.sum(), columns.sum()
        inside = np.flatnonzero(rows)[:1] > 0 if height else [False]
        if height and inside and rows[-1] == 0 and columns[0] == 0 and columns[-1] == 0:
            uncut += 1  # each half side is rounded down, by less than a pixel
            assert abs(height / H - width / W) < 2 / H
        assert float(labels[1, 1]) == pytest.approx(1 - height * width / (H * W), abs=1e-6)
    assert uncut > 5


def test_both_means_one_of_them_a_batch(batch):
    images, targets, mask = batch
    cut = [
        set(np.unique(mixed(images, targets, mask, jax.random.key(i), 0.2, 1.0)[0][1]))
        <= {0.0, 1.0}
        for i in range(60)
    ]
    assert 15 < sum(cut) < 45


@pytest.mark.parametrize('kind', KINDS)
def test_what_could_not_be_read_is_mixed_into_nothing(batch, kind):
    images, targets, _ = batch
    mask = jnp.array([1.0, 0, 1, 1, 1, 1])
    new, labels = mixed(images.at[1].set(jnp.nan), targets, mask, jax.random.key(3), *kind)
    np.testing.assert_array_equal(new[2], images[2])
    np.testing.assert_array_equal(labels[2], targets[2])
    real = np.asarray(mask) > 0
    assert np.isfinite(np.asarray(new)[real]).all()


def test_the_same_key_mixes_in_the_same_way_and_no_alpha_not_at_all(batch):
    one, two, other = (mixed(*batch, jax.random.key(k), 0.2, 1.0) for k in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[1], other[1])
    task = Classification(Settings(tuple('abcdef'), K))
    assert task.mixed(*batch, jax.random.key(0)) == batch[:2]


@pytest.mark.parametrize('kind', split(KINDS, KINDS[1:2], one_argument=True))
def test_the_step_trains_on_smoothed_mixed_labels(kind):
    config = default_config()
    config.preprocess.mixup, config.preprocess.cutmix = kind
    config.loss.label_smoothing, config.optimizer.lr = 0.1, 0.0
    config.seed = 4
    mesh, model = make_mesh(), Linear()
    recipe = make_recipe(config, model, 'abc', 10)
    rng = np.random.default_rng(0)
    batch = {
        'image': rng.integers(0, 256, (8, 32, 32, 1), dtype=np.uint8),
        'label': np.arange(8, dtype=np.int32) % 3,
        'id': np.arange(8, dtype=np.int32),
        'mask': np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32),
    }
    state = init_state(recipe, (32, 32, 1), mesh)
    key = jax.random.fold_in(jax.random.fold_in(state.rng, 0), MIX)
    # Compute the loss and the metrics of the mixed batch directly.
    images, targets = mixed(
        batch['image'] / np.float32(255),
        np.eye(3, dtype=np.float32)[batch['label']],
        batch['mask'],
        key,
        *kind,
    )
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=True)[0])
    logits = apply(state.variables, images)
    loss = losses.softmax_cross_entropy(logits, losses.smooth_labels(targets, 0.1)) * batch['mask']
    right = (logits.argmax(-1) == targets.argmax(-1)) * batch['mask']
    # The training step must give the same.
    step = make_train_step(recipe, mesh)
    _, metrics = step(state, batch)
    assert float(metrics['loss']) == pytest.approx(float(loss.sum()), rel=1e-5)
    assert float(metrics['top1']) == right.sum() and float(metrics['count']) == 7
