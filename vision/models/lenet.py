"""LeNet-5 in its current form (LeCun et al. 1998); `lenet_1998` has the published one."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.base import Endpoints, ImageModel
from vision.models.layers import Conv, Dense, avg_pool, flatten, glorot_uniform, max_pool


class LeNet5(ImageModel):
    """LeNet-5 in its current form: dense C3, ReLU, max pooling, softmax.

    LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, section II.B.
    61,706 parameters with one input channel and ten classes.

    | stage    | shape      |                |
    |----------|------------|----------------|
    | input    | 32, 32, 1  |                |
    | stage1   | 14, 14, 6  | 5x5, pool 2    |
    | stage2   | 5, 5, 16   | 5x5, pool 2    |
    | stage3   | 120        | fully connected|
    | features | 84         | fully connected|
    | logits   | K          |                |

    Attributes:
      padding: padding of the first convolution: 0 for 32x32 images, 2 for 28x28.
      activation: 'relu', or 'tanh', which is close to the paper's sigmoid.
      pool: 'max' or 'average'.
    """

    num_classes: int = 10
    padding: Literal[0, 2] = 0
    activation: Literal['relu', 'tanh'] = 'relu'
    pool: Literal['max', 'average'] = 'max'

    input_shape: ClassVar = (32, 32, 1)
    default_classes: ClassVar = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images [B, 32, 32, C], or 28 with `padding=2`."""
        self.check_images(
            images,
            exact_size=32 - 2 * self.padding,
            hint='padding=2 is for 28x28 images, padding=0 for 32x32',
        )
        endpoints: Endpoints = {}
        activate = {'relu': nn.relu, 'tanh': jnp.tanh}[self.activation]
        pool = {'max': max_pool, 'average': avg_pool}[self.pool]
        init = {'kernel_init': glorot_uniform, 'dtype': self.dtype}
        # C1, S2, C3, S4.
        x = activate(Conv(6, 5, padding=self.padding, **init, name='conv1')(images))
        x = self.record(endpoints, 'stage1', pool(x, 2, 2))
        x = activate(Conv(16, 5, **init, name='conv2')(x))
        x = self.record(endpoints, 'stage2', pool(x, 2, 2))
        # C5, F6 and the classifier.
        x = activate(Dense(120, **init, name='fc1')(flatten(x)))
        x = self.record(endpoints, 'stage3', x)
        x = activate(Dense(84, **init, name='fc2')(x))
        x = self.record(endpoints, 'features', x)
        logits = Dense(self.num_classes, **init, output_dtype=jnp.float32, name='fc3')
        return logits(x), endpoints
