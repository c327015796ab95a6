"""A network whose evaluation takes a minute, in which nothing of Python runs in the main thread; training takes no time."""

import time

import jax
import jax.numpy as jnp

from tests.training import tiny

NET = f'{__name__}:Net'


def _wait(x):
    time.sleep(60)
    return x


class Net(tiny.Net):
    """The small network, which waits when it is evaluated."""

    def __call__(self, images, train):
        """As `tiny.Net`."""
        outputs, endpoints = super().__call__(images, train)
        if not train:
            outputs = jax.pure_callback(
                _wait, jax.ShapeDtypeStruct(outputs.shape, jnp.float32), outputs
            )
        return outputs, endpoints
