"""Training curves with and without fast forms agree, for as long as rounding permits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.loop import synthetic_config
from vision.core import mesh as mesh_lib
from vision.data import arrays
from vision.models.cpu import winograd
from vision.models.layers import xla_only
from vision.models.lenet import LeNet5
from vision.models.resnet import ResNet
from vision.preprocess import inputs
from vision.training.setup import loading_of, make_recipe
from vision.training.step import init_state, make_train_step

STEPS = 40
pytestmark = pytest.mark.skipif(jax.default_backend() != 'cpu', reason='XLA has its own elsewhere')


class Run:
    """SGD on batches of 16 synthetic images of 32 px, always from the same parameters."""

    def __init__(self, model, lr):
        self.config, self.mesh = synthetic_config('lenet5', 32, 16), mesh_lib.make_mesh()
        self.source = arrays.synthetic('train', 256, image_size=32)
        recipe = make_recipe(self.config, model, self.source.class_names, STEPS)
        optimizer = optax.sgd(lr, momentum=0.9)
        self.recipe = dataclasses.replace(recipe, optimizer_for=lambda _: optimizer)
        self.state = init_state(self.recipe, (32, 32, 3), self.mesh)

    def losses(self):
        """Returns the mean loss of each step; the program is traced anew."""
        step = make_train_step(self.recipe, self.mesh)
        batches = inputs.TrainBatches(self.source, loading_of(self.config), self.mesh, 0)
        state, losses = jax.tree.map(jnp.copy, self.state), []  # the step donates its state
        for _ in range(STEPS):
            state, metrics = step(state, next(batches))
            losses.append(float(metrics['loss'] / metrics['count']))
        return np.array(losses)


@pytest.mark.parametrize(
    ('model', 'lr'),
    [
        (LeNet5(num_classes=10), 0.01),
        # 1x1, 3x3 and a padded pool; wide enough for Winograd.
        pytest.param(
            ResNet(num_classes=10, stage_sizes=(1,), widths=(64,), block='bottleneck'),
            0.01,
            marks=pytest.mark.slow,
        ),
    ],
    ids=['lenet5', 'resnet'],
)
def test_curves_agree(monkeypatch, model, lr):
    monkeypatch.setattr(winograd, 'WORK', 10**5)
    run = Run(model, lr)
    ours = run.losses()
    with xla_only():
        xla = run.losses()
    assert xla[-5:].mean() < 0.95 * xla[:5].mean()  # it learns
    np.testing.assert_allclose(ours[:5], xla[:5], rtol=1e-4)
    np.testing.assert_allclose(ours, xla, rtol=1e-3)  # measured: 4e-5
