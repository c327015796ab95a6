"""Training curves with and without the fast forms agree, for as long as rounding lets them."""

import jax
import numpy as np
import optax
import pytest

from vision.core import mesh as mesh_lib
from vision.data import arrays
from vision.models import fast
from vision.models.lenet import LeNet5
from vision.models.resnet import ResNet
from vision.preprocess import inputs
from vision.training.benchmark import synthetic_config
from vision.training.step import init_state, make_train_step

STEPS = 40
pytestmark = pytest.mark.skipif(jax.default_backend() != 'cpu', reason='XLA has its own elsewhere')


def _losses(model, lr):
    """The mean loss of each of the first steps, batches of 16 from synthetic images of 32 pixels."""
    config = synthetic_config('lenet5', 32, 16)
    schedule = optax.constant_schedule(lr)
    optimizer, mesh = optax.sgd(schedule, momentum=0.9), mesh_lib.make_mesh()
    source = arrays.synthetic('train', num_examples=256, image_size=32)
    state = init_state(model, optimizer, config, (32, 32, 3), mesh)
    step = make_train_step(model, optimizer, schedule, config, mesh)
    batches, losses = inputs.TrainBatches(source, config, mesh, 0), []
    for _ in range(STEPS):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics['loss'] / metrics['count']))
    return np.array(losses)


@pytest.mark.parametrize(
    ('model', 'lr'),
    [
        (LeNet5(num_classes=10), 0.01),
        # 1x1, 3x3, strides and a padded pool; wide enough for Winograd.
        (ResNet(num_classes=10, stage_sizes=(1, 1), widths=(64, 64), block='bottleneck'), 0.01),
    ],
    ids=['lenet5', 'resnet'],
)
def test_curves_agree(monkeypatch, model, lr):
    monkeypatch.setattr(fast, '_WINOGRAD_WORK', 10**5)
    ours = _losses(model, lr)
    with fast.switched_off():
        xla = _losses(model, lr)
    assert xla[-5:].mean() < 0.9 * xla[:5].mean()  # it learns: there is something to agree on
    np.testing.assert_allclose(ours[:5], xla[:5], rtol=1e-4)
    np.testing.assert_allclose(ours, xla, rtol=1e-2)
