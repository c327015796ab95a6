"""VGG (Simonyan and Zisserman 2014): configurations A to E, with dense evaluation."""

from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.base import Endpoints, ImageModel
from vision.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    adaptive_avg_pool,
    convolve,
    flatten,
    global_avg_pool,
    glorot_uniform,
    he_normal_fan_out,
    local_response_norm,
    max_pool,
    multiply,
    normal,
    scaled,
)

# Table 1: kernel size and width of each convolution. Each of the five stages ends with a 2x2 pool.
CONFIGURATIONS = {
    'A': '3-64 | 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512',
    'B': '3-64 3-64 | 3-128 3-128 | 3-256 3-256 | 3-512 3-512 | 3-512 3-512',
    'C': '3-64 3-64 | 3-128 3-128 | 3-256 3-256 1-256 | 3-512 3-512 1-512 | 3-512 3-512 1-512',
    'D': '3-64 3-64 | 3-128 3-128 | 3-256 3-256 3-256 | 3-512 3-512 3-512 | 3-512 3-512 3-512',
    'E': (
        '3-64 3-64 | 3-128 3-128 | 3-256 3-256 3-256 3-256 '
        '| 3-512 3-512 3-512 3-512 | 3-512 3-512 3-512 3-512'
    ),
}


class WindowDense(nn.Module):
    """Fully connected layer over each `window` x `window` part of its input, as a convolution.

    On an input of exactly the window's size it is a matrix product, as in training (section 3.2).
    Parameters `kernel` [window² C, features] and `bias` [features].
    """

    features: int
    window: int
    kernel_init: Any = normal(0.01)
    dtype: Any = jnp.float32
    output_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H - window + 1, W - window + 1, features]."""
        shape = (self.window**2 * x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        out = self.output_dtype or self.dtype
        # Use a matrix product for a single window, and a convolution for several.
        if x.shape[1:3] == (self.window, self.window):
            y = multiply(flatten(x), kernel, out)[:, None, None]
        else:
            windows = (self.window, self.window, x.shape[-1], self.features)
            y = convolve(x, kernel.reshape(windows)).astype(out)
        return y + bias.astype(out)


class VGG(ImageModel):
    """VGG: Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, section 2, table 1.

    Parameters: A 132,863,336; B 133,047,848; C 133,638,952; D 138,357,544; E 143,667,240.

    | stage    | shape         |                                            |
    |----------|---------------|--------------------------------------------|
    | input    | 224, 224, 3   |                                            |
    | stage1   | 112, 112, 64  | convolutions of the configuration, pool 2  |
    | stage2   | 56, 56, 128   |                                            |
    | stage3   | 28, 28, 256   |                                            |
    | stage4   | 14, 14, 512   |                                            |
    | stage5   | 7, 7, 512     |                                            |
    | features | 4096          | two hidden layers with dropout             |
    | logits   | K             |                                            |

    Attributes:
      configuration: column of table 1.
      lrn: AlexNet's normalisation after the first convolution (configuration A-LRN).
      batch_norm: batch normalisation after each convolution (not in the paper).
      dropout: rate in the two hidden layers (section 3.1).
      weight_init: 'he', or 'glorot', which needs no pre-training (section 3.1).
      dense_evaluation: whether evaluation applies the fully connected layers as convolutions to
        images of at least 224 px, and averages logits and features over positions (section 3.2).
        Otherwise the last stage is pooled to 7x7 for every image size.
      stem: 'small' is for images of 28 and 32 px: the five stages reduce them to one pixel (pools
        round odd sizes up), and a single layer computes the logits.
      width: multiplier of all convolution widths, for small data.
    """

    configuration: Literal['A', 'B', 'C', 'D', 'E'] = 'D'
    lrn: bool = False
    batch_norm: bool = False
    dropout: float = 0.5
    weight_init: Literal['he', 'glorot'] = 'he'
    dense_evaluation: bool = False
    stem: Literal['imagenet', 'small'] = 'imagenet'
    width: float = 1.0

    input_shape: ClassVar = (224, 224, 3)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images of at least 32 px (small stem: 1)."""
        small = self.stem == 'small'
        dense = self.dense_evaluation and not (train or small)
        self.check_images(images, min_size=1 if small else 224 if dense else 32, hint=self._hint())
        endpoints: Endpoints = {}
        x = images.astype(self.dtype)
        # The five stages of the configuration.
        for stage, layers in enumerate(CONFIGURATIONS[self.configuration].split('|'), 1):
            for i, layer in enumerate(layers.split(), 1):
                kernel, width = (int(n) for n in layer.split('-'))
                x = self._convolution(x, kernel, scaled(width, self.width), f'{stage}_{i}', train)
                if self.lrn and (stage, i) == (1, 1):
                    x = local_response_norm(x)
            x = max_pool(x, 2, 2, ceil=small)
            x = self.record(endpoints, f'stage{stage}', x)
        # Classifier.
        if small:
            x = self.record(endpoints, 'features', global_avg_pool(x))
            init = {'kernel_init': normal(0.01), 'dtype': self.dtype}
            return Dense(self.num_classes, **init, output_dtype=jnp.float32, name='fc8')(
                x
            ), endpoints
        return self._classify(x if dense else adaptive_avg_pool(x, 7), endpoints, train)

    def _convolution(
        self, x: jax.Array, kernel: int, width: int, name: str, train: bool
    ) -> jax.Array:
        """Applies a convolution, batch normalisation if it is enabled, and ReLU."""
        init = {'he': he_normal_fan_out, 'glorot': glorot_uniform}[self.weight_init]
        conv = partial(Conv, kernel_init=init, dtype=self.dtype)
        x = conv(width, kernel, padding=kernel // 2, name=f'conv{name}')(x)
        if self.batch_norm:
            x = BatchNorm(dtype=self.dtype, name=f'bn{name}')(x, train)
        return nn.relu(x)

    def _classify(self, x: jax.Array, endpoints: Endpoints, train: bool):
        """Applies two hidden layers and the classifier, and averages over positions."""
        init = {'he': normal(0.01), 'glorot': glorot_uniform}[self.weight_init]
        layer = partial(WindowDense, kernel_init=init, dtype=self.dtype)
        for name, window in (('fc6', 7), ('fc7', 1)):
            x = nn.relu(layer(4096, window, name=name)(x))
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        # Features are averaged over the positions of dense evaluation.
        endpoints['features'] = self.perturb('features', global_avg_pool(x))
        if x.shape[1:3] == (1, 1):
            # Classify the perturbed features, so that gradients with respect to them exist.
            x = endpoints['features'][:, None, None]
        x = layer(self.num_classes, 1, output_dtype=jnp.float32, name='fc8')(x)
        return global_avg_pool(x), endpoints

    def _hint(self) -> str:
        """Returns advice for images that are too small."""
        if self.stem == 'small':
            return ''
        if self.dense_evaluation:
            return 'dense_evaluation=False takes images of 32 px and larger'
        return "stem='small' takes smaller images"
