"""AlexNet: with two towers (Krizhevsky, Sutskever, Hinton 2012) and one (Krizhevsky 2014)."""

from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.base import Endpoints, ImageModel
from vision.models.layers import (
    Conv,
    Dense,
    adaptive_avg_pool,
    fan_in_uniform,
    flatten,
    local_response_norm,
    max_pool,
    normal,
    uniform_bias,
)

# Smallest image size at which three 3x3 pools with stride 2 leave at least one pixel.
MIN_SIZE_SMALL_STEM = 15


class AlexNet2012(ImageModel):
    """AlexNet as published.

    Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012, section 3.
    The two towers of figure 2 are convolutions with two groups. Local response normalisation (3.3)
    covers all kernels of its layer. Initialisation follows section 5: N(0, 0.01), and biases of 1
    in conv2, conv4, conv5 and the hidden fully connected layers. 60,965,224 parameters.

    | stage    | shape       |                                                     |
    |----------|-------------|-----------------------------------------------------|
    | input    | 227, 227, 3 | (224 in the paper, which does not fit its strides)  |
    | stage1   | 27, 27, 96  | 11x11 stride 4, LRN, pool 3 stride 2                |
    | stage2   | 13, 13, 256 | 5x5 in two groups, LRN, pool 3 stride 2             |
    | stage3   | 13, 13, 384 | 3x3 over both towers                                |
    | stage4   | 13, 13, 384 | 3x3 in two groups                                   |
    | stage5   | 6, 6, 256   | 3x3 in two groups, pool 3 stride 2                  |
    | features | 4096        | two hidden layers with dropout                      |
    | logits   | K           |                                                     |

    Attributes:
      dropout: rate in the hidden layers (section 4.2).
      stem: 'small' uses 5x5 stride 1 in conv1, as in cuda-convnet's networks for 32 px images.
      hidden: width of the hidden layers.
    """

    dropout: float = 0.5
    stem: Literal['imagenet', 'small'] = 'imagenet'
    hidden: int = 4096

    input_shape: ClassVar = (227, 227, 3)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images [B, H, W, C] of at least 67 px (small: 15).

        The shapes of the parameters depend on the image size.
        """
        small = self.stem == 'small'
        self.check_images(images, min_size=MIN_SIZE_SMALL_STEM if small else 67, hint=_hint(small))
        conv = partial(Conv, kernel_init=normal(0.01), dtype=self.dtype)
        dense = partial(Dense, kernel_init=normal(0.01), dtype=self.dtype)
        ones = nn.initializers.ones
        endpoints: Endpoints = {}

        # Convolutional layers.
        first = (96, 5, 1, 2) if small else (96, 11, 4, 0)
        x = local_response_norm(nn.relu(conv(*first, name='conv1')(images)))
        x = self.record(endpoints, 'stage1', max_pool(x, 3, 2))
        conv2 = conv(256, 5, padding=2, groups=2, bias_init=ones, name='conv2')
        x = local_response_norm(nn.relu(conv2(x)))
        x = self.record(endpoints, 'stage2', max_pool(x, 3, 2))
        x = nn.relu(conv(384, 3, padding=1, name='conv3')(x))
        x = self.record(endpoints, 'stage3', x)
        x = nn.relu(conv(384, 3, padding=1, groups=2, bias_init=ones, name='conv4')(x))
        x = self.record(endpoints, 'stage4', x)
        x = nn.relu(conv(256, 3, padding=1, groups=2, bias_init=ones, name='conv5')(x))
        x = self.record(endpoints, 'stage5', max_pool(x, 3, 2))

        # Fully connected layers.
        x = flatten(x)
        for name in ('fc6', 'fc7'):
            x = nn.relu(dense(self.hidden, bias_init=ones, name=name)(x))
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = self.record(endpoints, 'features', x)
        return dense(self.num_classes, output_dtype=jnp.float32, name='fc8')(x), endpoints


class AlexNet(ImageModel):
    """AlexNet in its current form.

    Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, section 3.
    It has one tower, no normalisation and 61,100,840 parameters.

    | stage    | shape       |                                       |
    |----------|-------------|---------------------------------------|
    | input    | 224, 224, 3 |                                       |
    | stage1   | 27, 27, 64  | 11x11 stride 4, pool 3 stride 2       |
    | stage2   | 13, 13, 192 | 5x5, pool 3 stride 2                  |
    | stage3   | 13, 13, 384 | 3x3                                   |
    | stage4   | 13, 13, 256 | 3x3                                   |
    | stage5   | 6, 6, 256   | 3x3, pool 3 stride 2                  |
    | features | 4096        | two hidden layers with dropout        |
    | logits   | K           |                                       |

    Attributes:
      dropout: rate before each hidden layer.
      stem: 'small' uses 5x5 stride 1 in conv1 and omits the adaptive pooling before the hidden
        layers, for images of 28 or 32 px.
      hidden: width of the hidden layers.
    """

    dropout: float = 0.5
    stem: Literal['imagenet', 'small'] = 'imagenet'
    hidden: int = 4096

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images of any size from 63 px (small stem: 15)."""
        small = self.stem == 'small'
        self.check_images(images, min_size=MIN_SIZE_SMALL_STEM if small else 63, hint=_hint(small))
        endpoints: Endpoints = {}

        def conv(x: jax.Array, features: int, kernel: int, strides: int, pad: int, name: str):
            fan_in = kernel * kernel * x.shape[-1]
            init: dict[str, Any] = {
                'kernel_init': fan_in_uniform,
                'bias_init': uniform_bias(fan_in),
            }
            return nn.relu(
                Conv(features, kernel, strides, pad, **init, dtype=self.dtype, name=name)(x)
            )

        # Convolutional layers.
        first = (64, 5, 1, 2) if small else (64, 11, 4, 2)
        x = max_pool(conv(images, *first, name='conv1'), 3, 2)
        x = self.record(endpoints, 'stage1', x)
        x = max_pool(conv(x, 192, 5, 1, 2, name='conv2'), 3, 2)
        x = self.record(endpoints, 'stage2', x)
        x = self.record(endpoints, 'stage3', conv(x, 384, 3, 1, 1, name='conv3'))
        x = self.record(endpoints, 'stage4', conv(x, 256, 3, 1, 1, name='conv4'))
        x = max_pool(conv(x, 256, 3, 1, 1, name='conv5'), 3, 2)
        x = self.record(endpoints, 'stage5', x)

        # Fully connected layers.
        x = flatten(x if small else adaptive_avg_pool(x, 6))
        for name in ('fc6', 'fc7'):
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            init = uniform_bias(x.shape[-1])
            x = nn.relu(Dense(self.hidden, bias_init=init, dtype=self.dtype, name=name)(x))
        x = self.record(endpoints, 'features', x)
        # Classifier.
        logits = Dense(
            self.num_classes,
            bias_init=uniform_bias(self.hidden),
            dtype=self.dtype,
            output_dtype=jnp.float32,
            name='fc8',
        )
        return logits(x), endpoints


def _hint(small: bool) -> str:
    return '' if small else "stem='small' takes smaller images"
