"""`experiments.train` with the numbers that commit c2452e1 drew for `affine` on the device.

A run of that commit goes on with other augmentation than it began with; with this it ends where it would have ended.
"""

import sys

import jax
import jax.numpy as jnp

ORDER = (0, 2, 1, 3, 5, 4)  # it drew those of y before those of x


def image_key(seed, epoch, example, view=0):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), example)


def uniform(self, low=0.0, high=1.0, shape=()):
    assert shape == (6,)
    return jax.random.uniform(jax.random.fold_in(self._key, 0), shape, minval=low, maxval=high)[
        jnp.array(ORDER)
    ]


def main():
    from vision.core import cli
    from vision.preprocess import device

    device.image_key, device.DeviceRng.uniform = image_key, uniform
    sys.argv = ['train', *sys.argv[1:]]
    from experiments import train

    cli.run(train.main)


if __name__ == '__main__':
    main()
