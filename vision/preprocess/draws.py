"""The random numbers of augmentation: functions of (seed, epoch, id, the op's position).

An op asks its `Rng` for numbers on the host, and its `DeviceRng` on the device. Both forms of an op
ask for the same numbers in the same order, so that they are equally distributed; the numbers are
others:

* on the host they are computed in NumPy from integer hashes. Crop boxes and choices of ops are the
  same on every machine and with every version of TensorFlow, and do not depend on the number of threads,
  hosts, or batches. Five integers are hashed here, and fewer for the order of the examples
  (`vision.data.order`) and their splits, so that no two uses share a hash;
* on the device they come from a JAX key (`vision.core.keys.image_key`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision.core.startup import tf_cpu
from vision.data.order import hash64

PER_OP = 64  # numbers on the host, of which random_erasing takes 43; requests on the device


def draw(seed: int, epochs: np.ndarray, ids: np.ndarray, num_ops: int) -> np.ndarray:
    """Draws what the ops of an op string need on the host.

    Args:
      seed: of the run.
      epochs: int [B].
      ids: int [B].
      num_ops: how many ops the string has.

    Returns:
      Uniform in [0, 1): float64 [B, num_ops, PER_OP].
    """
    bits = hash64(
        seed,
        epochs[:, None, None],
        ids[:, None, None],
        np.arange(num_ops)[:, None],
        np.arange(PER_OP),
    )
    return (bits >> np.uint64(11)) * 2.0**-53


class Rng:
    """Hands out one op's random numbers on the host, in the order in which the op asks for them."""

    def __init__(self, uniform: Any):
        """Takes the op's row of `draw`: float64 [PER_OP], a tensor or an array."""
        self._uniform = uniform
        self._used = 0

    def again(self) -> 'Rng':
        """The same numbers from the beginning, for another branch of a condition."""
        return Rng(self._uniform)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Any:
        """Uniform in [low, high): float64 of that static shape."""
        tf = tf_cpu()
        count = int(np.prod(shape, dtype=int))
        if self._used + count > PER_OP:
            raise ValueError(f'an op may draw {PER_OP} numbers')
        values = self._uniform[self._used : self._used + count]
        self._used += count
        return low + (high - low) * tf.reshape(values, shape)

    def below(self, bound: Any) -> Any:
        """Integers of 0 … bound − 1, each equally likely: int32 of the shape of `bound`, which may be a tensor."""
        tf = tf_cpu()
        bound = tf.cast(bound, tf.float64)
        values = tf.floor(self.uniform(shape=tuple(bound.shape)) * bound)
        return tf.cast(tf.minimum(values, bound - 1), tf.int32)

    def chance(self, probability: float) -> Any:
        """True with that probability: a boolean scalar."""
        return self.uniform() < probability

    def field(self, shape: Any, low: float, high: float, dtype: str = 'float32') -> Any:
        """Uniform in [low, high), of any shape, a tensor too: where an op needs a number for every pixel.

        The generator is TensorFlow's, seeded with two of the op's numbers.
        """
        tf = tf_cpu()
        seed = tf.cast(self.uniform(shape=(2,)) * 2.0**62, tf.int64)
        return tf.random.stateless_uniform(shape, seed, low, high, dtype, alg='philox')


class DeviceRng:
    """`Rng` for the form of an op that runs on the device: each request has a key of its own."""

    def __init__(self, key: jax.Array, position: int = 0):
        """Takes the image's key, and the op's position in the op string."""
        self._key = key
        self._next, self._end = position * PER_OP, (position + 1) * PER_OP

    def uniform(
        self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()
    ) -> jax.Array:
        """Uniform in [low, high): float32 of that shape."""
        if self._next == self._end:
            raise ValueError(f'an op may ask for numbers {PER_OP} times')
        key = jax.random.fold_in(self._key, self._next)
        self._next += 1
        return jax.random.uniform(key, shape, minval=low, maxval=high)

    def below(self, bound: Any) -> jax.Array:
        """Integers of 0 … bound − 1, each equally likely: int32 of the shape of `bound`."""
        bound = jnp.asarray(bound)
        values = jnp.floor(self.uniform(shape=bound.shape) * bound).astype(jnp.int32)
        return jnp.minimum(values, bound - 1)

    def chance(self, probability: float) -> jax.Array:
        """True with that probability: a boolean scalar."""
        return self.uniform() < probability

    def field(self, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
        """Uniform in [low, high), a number for every pixel: float32 of that shape."""
        return self.uniform(low, high, shape)
