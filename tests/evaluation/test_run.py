"""Initial parameters of a run: the compiler options that make them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import initializers

from tests.processes import FULL_EFFORT
from vision.core.checkpoints import Checkpoints
from vision.core.errors import UserError
from vision.models.base import run_once


def test_what_is_run_once_has_the_bits_of_what_is_compiled_with_full_effort():
    kinds = (
        initializers.normal(0.01),
        initializers.truncated_normal(0.1),
        initializers.variance_scaling(2.0, 'fan_out', 'normal'),
        initializers.uniform(0.3),
    )

    def make():
        keys = jax.random.split(jax.random.key(3), len(kinds))
        return [
            kind(key, (3, 5, 7, 11), jnp.float32) for kind, key in zip(kinds, keys, strict=True)
        ]

    compiled = jax.jit(make, compiler_options=FULL_EFFORT)
    for got, expected in zip(run_once(make), compiled(), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()
        assert np.std(got) > 1e-3


def test_one_call_reads_a_run(workdir, digits):
    import vision

    run = vision.load(workdir)
    images = run.task.normalise(jnp.pad(digits.images[:4], ((0, 0), (12, 12), (12, 12), (0, 0))))
    outputs, endpoints = run.model.apply(run.variables, images, train=False)
    assert outputs.shape == (4, 10) and 'features' in endpoints
    assert next(iter(run.task.metrics)) == 'top1' and run.config.preprocess.eval == 'resize(32)'


def test_a_checkpoint_with_weights_that_are_not_finite_is_named(workdir, monkeypatch):
    from vision.evaluation.run import load_run

    restore = Checkpoints.restore_variables

    def spoiled(self, *args):
        found = restore(self, *args)
        found['params']['conv1']['kernel'] = found['params']['conv1']['kernel'].at[0].set(jnp.nan)
        return found

    step = load_run(workdir, 'last').step
    monkeypatch.setattr(Checkpoints, 'restore_variables', spoiled)
    says = f'{workdir}, checkpoint {step} has .*NaN or infinite: params/conv1/kernel .*use another'
    with pytest.raises(UserError, match=says):
        load_run(workdir, 'last')
