"""The random numbers of augmentation: functions of (seed, epoch, id, the op's position).

They are computed in NumPy from integer hashes, so crop boxes and choices of ops are the same on
every machine and with every version of TensorFlow, and do not depend on the number of threads,
hosts, or batches.
"""

from typing import Any

import numpy as np

from vision.core.tf_cpu import tf_cpu
from vision.data.order import hash64

PER_OP = 64  # uniform numbers; random_resized_crop, the hungriest, takes 40


def draw(seed: int, epochs: np.ndarray, ids: np.ndarray, num_ops: int) -> np.ndarray:
    """Draws what the ops of an op string need.

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
    """Hands out one op's random numbers, in the order in which the op asks for them."""

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
        """An integer of 0 … bound − 1, each equally likely: int32; bound may be a tensor."""
        tf = tf_cpu()
        bound = tf.cast(bound, tf.float64)
        return tf.cast(tf.minimum(tf.floor(self.uniform() * bound), bound - 1), tf.int32)

    def chance(self, probability: float) -> Any:
        """True with that probability: a boolean scalar."""
        return self.uniform() < probability

    def field_seed(self) -> Any:
        """A seed for `tf.random.stateless_*`, where an op needs a number for every pixel."""
        tf = tf_cpu()
        return tf.cast(self.uniform(shape=(2,)) * 2.0**62, tf.int64)
