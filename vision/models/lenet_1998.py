"""LeNet-5 as published (LeCun, Bottou, Bengio, Haffner 1998)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.core.errors import UserError
from vision.models.base import Endpoints, ImageModel
from vision.models.layers import Conv, Dense, avg_pool, convolve, flatten

# Table I: the maps of S2 that each map of C3 is connected to; 60 pairs in all.
C3_INPUTS = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)

# Figure 3: stylised bitmaps of the digits 0 to 9, 7 wide and 12 high, which are the targets of F6.
# The printed figure is small. These pixels are those of public implementations (see
# github.com/mattwang44/LeNet-from-Scratch, utils/RBF_initial_weight.py).
DIGIT_BITMAPS = """
.#####.  ...##..  .#####.  #######  .#####.  .#####.  ..####.  #######  .#####.  .#####.
.......  ..###..  .......  .....##  .......  .......  .##....  .....##  ##...##  ##..###
..###..  .####..  .#####.  ....##.  .......  #######  ##.....  .....##  ##...##  ##...##
.##.##.  ...##..  ##...##  ...##..  .##..##  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ...##..  #....##  ..####.  .##..##  ##.....  ######.  ...##..  .#####.  ##..###
##...##  ...##..  ....##.  .....##  ###..##  .####..  ###..##  ...##..  ##...##  .######
##...##  ...##..  ..###..  .....##  ##...##  ..####.  ##...##  ..##...  ##...##  .....##
##...##  ...##..  .##....  .....##  ##...##  .....##  ##...##  ..##...  ##...##  .....##
.##.##.  ...##..  ##.....  ##...##  ##..###  ##...##  ###..##  ..##...  ##...##  ....##.
..###..  .######  #######  .#####.  .######  .#####.  .#####.  ..##...  .#####.  .####..
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
"""


def digit_codes() -> np.ndarray:
    """Returns the fixed output parameters: float32 [10, 84], +1 for ink, −1 for none."""
    rows = [line.split() for line in DIGIT_BITMAPS.split('\n') if line]
    ink = [[c == '#' for row in rows for c in row[digit]] for digit in range(10)]
    return np.where(ink, 1, -1).astype(np.float32)


def squash(x: jax.Array) -> jax.Array:
    """Appendix A's sigmoid, 1.7159 tanh(2x/3): f(±1) = ±1, where the curvature is greatest."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def uniform_by_fan_in(fan_in: int | np.ndarray):
    """Appendix A's initialiser, U(±2.4/fan-in); an array gives the fan-in of each output."""
    bound = 2.4 / np.asarray(fan_in, np.float32)
    return lambda key, shape, dtype=jnp.float32: (
        bound * jax.random.uniform(key, shape, dtype, -1, 1)
    )


class Subsample(nn.Module):
    """S2 and S4 (section II.B): squash(coefficient · sum over 2x2 pixels + bias)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / 2, W / 2, C]."""
        init = uniform_by_fan_in(4)
        coefficient = self.param('coefficient', init, (x.shape[-1],), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        # The sum over 2x2 pixels is four times their mean.
        total = 4 * avg_pool(x, 2, 2)
        return squash(total * coefficient.astype(self.dtype) + bias.astype(self.dtype))


class TableConv(nn.Module):
    """C3 (section II.B, table I): 5x5 kernels for the 60 connected pairs of maps only."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, 14, 14, 6] to [B, 10, 10, 16]."""
        sources = np.concatenate(C3_INPUTS)
        targets = np.repeat(np.arange(16), [len(maps) for maps in C3_INPUTS])
        fan_in = np.asarray([25 * len(C3_INPUTS[t]) for t in targets])
        weights = self.param('kernel', uniform_by_fan_in(fan_in), (5, 5, 60), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (16,), jnp.float32)
        # Scatter the weights into a dense kernel that is zero elsewhere.
        kernel = jnp.zeros((5, 5, 6, 16), jnp.float32).at[:, :, sources, targets].set(weights)
        return convolve(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class LeNet5Original(ImageModel):
    """LeNet-5 as published, for digits only.

    LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, section II.B.
    60,000 trainable parameters. White pixels are -0.1 and black ones 1.175, so that the mean is
    about 0 and the variance about 1. The logits are the negative squared distances to the ten
    bitmaps. Train it with eq. 8 or 9 (`vision.task.losses`).

    | stage    | shape      |                                                          |
    |----------|------------|----------------------------------------------------------|
    | input    | 32, 32, 1  |                                                          |
    | c1       | 28, 28, 6  | 5x5                                                      |
    | s2       | 14, 14, 6  | trainable subsampling                                    |
    | c3       | 10, 10, 16 | 5x5, table I                                             |
    | s4       | 5, 5, 16   | trainable subsampling                                    |
    | c5       | 1, 1, 120  | 5x5                                                      |
    | features | 84         | F6, 7x12 values                                          |
    | logits   | 10         | minus the squared Euclidean distance to each digit's code|
    """

    num_classes: int = 10

    input_shape: ClassVar = (32, 32, 1)
    default_classes: ClassVar = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, 10], endpoints) for images [B, 32, 32, 1]."""
        if self.num_classes != 10:
            raise UserError(
                f'lenet5_1998 has ten classes, one bitmap per digit, not {self.num_classes}: '
                "use 'lenet5' instead"
            )
        self.check_images(images, exact_size=32, channels=1, hint='pad 28x28 digits by 2')
        endpoints: Endpoints = {}
        conv = _conv_1998(self.dtype)
        x = images.astype(self.dtype)
        # Convolutions and subsampling, as in figure 2.
        x = self.record(endpoints, 'c1', squash(conv(6, 25, name='C1')(x)))
        x = self.record(endpoints, 's2', Subsample(self.dtype, name='S2')(x))
        x = self.record(endpoints, 'c3', squash(TableConv(self.dtype, name='C3')(x)))
        x = self.record(endpoints, 's4', Subsample(self.dtype, name='S4')(x))
        x = self.record(endpoints, 'c5', squash(conv(120, 400, name='C5')(x)))
        f6 = Dense(84, kernel_init=uniform_by_fan_in(120), dtype=self.dtype, name='F6')
        x = self.record(endpoints, 'features', squash(f6(flatten(x))))
        # Output layer: Euclidean distance of F6 to each digit's bitmap.
        differences = x.astype(jnp.float32)[:, None] - digit_codes()
        return -jnp.square(differences).sum(-1), endpoints


def _conv_1998(dtype: Any):
    """Returns a constructor of 5x5 convolutions with appendix A's initialisation."""

    def conv(features: int, fan_in: int, name: str) -> Conv:
        return Conv(features, 5, kernel_init=uniform_by_fan_in(fan_in), dtype=dtype, name=name)

    return conv
