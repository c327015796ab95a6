"""A network whose evaluation blocks in XLA for a minute, while its training is fast."""

import time

import jax
import jax.numpy as jnp

from tests.training import tiny

NET = f'{__name__}:Net'


def _wait(x):
    time.sleep(60)
    return x


class Net(tiny.Net):
    """The small network, with a long wait in evaluation."""

    def __call__(self, images, train):
        """Like `tiny.Net`."""
        outputs, endpoints = super().__call__(images, train)
        if not train:
            outputs = jax.pure_callback(
                _wait, jax.ShapeDtypeStruct(outputs.shape, jnp.float32), outputs
            )
        return outputs, endpoints
