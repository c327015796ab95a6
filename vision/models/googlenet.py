"""GoogLeNet (Szegedy et al. 2014): as published, and with batch normalisation."""

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
    Pair,
    adaptive_avg_pool,
    avg_pool,
    fan_in_uniform,
    flatten,
    global_avg_pool,
    glorot_uniform,
    local_response_norm,
    max_pool,
    scaled,
    truncated_normal,
)

# Table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
WIDTHS = {
    '3a': (64, 96, 128, 16, 32, 32),
    '3b': (128, 128, 192, 32, 96, 64),
    '4a': (192, 96, 208, 16, 48, 64),
    '4b': (160, 112, 224, 24, 64, 64),
    '4c': (128, 128, 256, 24, 64, 64),
    '4d': (112, 144, 288, 32, 64, 64),
    '4e': (256, 160, 320, 32, 128, 128),
    '5a': (256, 160, 320, 32, 128, 128),
    '5b': (384, 192, 384, 48, 128, 128),
}


class ConvUnit(nn.Module):
    """Convolution and ReLU, with a bias as published or with batch normalisation."""

    features: int
    kernel_size: Pair
    strides: int = 1
    padding: int = 0
    original: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        conv = partial(
            Conv, self.features, self.kernel_size, self.strides, self.padding, dtype=self.dtype
        )
        # As published.
        if self.original:
            bias = nn.initializers.constant(0.2)
            return nn.relu(conv(kernel_init=glorot_uniform, bias_init=bias, name='conv')(x))
        # With batch normalisation, whose bias replaces the bias of the convolution.
        x = conv(use_bias=False, kernel_init=truncated_normal(0.01), name='conv')(x)
        return nn.relu(BatchNorm(epsilon=1e-3, dtype=self.dtype, name='bn')(x, train))


class Inception(nn.Module):
    """Inception module (figure 2b): four branches, concatenated along the channels."""

    widths: tuple[int, ...]
    original: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, sum of the branches' widths]."""
        one, reduce3, three, reduce5, five, project = self.widths
        unit = partial(ConvUnit, original=self.original, dtype=self.dtype)
        # The current form has 3x3 in place of the paper's 5x5.
        wide = 5 if self.original else 3
        branch1 = unit(one, 1, name='branch1')(x, train)
        branch2 = unit(reduce3, 1, name='branch2_0')(x, train)
        branch2 = unit(three, 3, padding=1, name='branch2_1')(branch2, train)
        branch3 = unit(reduce5, 1, name='branch3_0')(x, train)
        branch3 = unit(five, wide, padding=wide // 2, name='branch3_1')(branch3, train)
        branch4 = unit(project, 1, name='branch4_1')(max_pool(x, 3, 1, padding=1), train)
        return jnp.concatenate([branch1, branch2, branch3, branch4], axis=-1)


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier (section 5): pooling to 4x4, 1x1 convolution, hidden layer."""

    num_classes: int
    dropout: float
    original: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, 14, 14, C] to logits [B, K]."""
        x = avg_pool(x, 5, 3) if self.original else adaptive_avg_pool(x, 4)
        x = ConvUnit(128, 1, original=self.original, dtype=self.dtype, name='conv')(x, train)
        init = glorot_uniform if self.original else truncated_normal(0.01)
        dense = partial(Dense, kernel_init=init, dtype=self.dtype)
        x = nn.relu(dense(1024, name='fc1')(flatten(x)))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return dense(self.num_classes, output_dtype=jnp.float32, name='fc2')(x)


class GoogLeNet(ImageModel):
    """GoogLeNet: Szegedy et al., Going Deeper with Convolutions, 2014, section 5, table 1.

    6,998,552 parameters as published (13,378,280 with auxiliary heads). With batch normalisation
    (Ioffe and Szegedy 2015) and 3x3 in place of 5x5, 6,624,904 (13,004,888).

    | stage    | shape         |                                             |
    |----------|---------------|---------------------------------------------|
    | input    | 224, 224, 3   |                                             |
    | stage1   | 56, 56, 64    | 7x7 stride 2, pool 3 stride 2, LRN          |
    | stage2   | 28, 28, 192   | 1x1, 3x3, LRN, pool 3 stride 2              |
    | 3a, 3b   | 28, 28, ...   | 256, 480 channels                           |
    | 4a .. 4e | 14, 14, ...   | 512, 512, 512, 528, 832 channels            |
    | 5a, 5b   | 7, 7, ...     | 832, 1024 channels                          |
    | features | 1024          | mean over positions, dropout                |
    | logits   | K             |                                             |

    In training, `aux` has the logits of the heads on 4a and 4d. The paper weights their losses by
    0.3.

    Attributes:
      original: the published form with LRN, biases and 5x5 convolutions, without batch
        normalisation. The paper does not give the initialisation; it is that of the Caffe replica,
        Glorot's with biases of 0.2.
      dropout: rate before the last layer: 0.4 in the paper, 0.2 in the current form.
      aux_heads: whether the two auxiliary heads exist.
      aux_dropout: rate in the hidden layer of the heads.
      stem: 'small' replaces stages 1 and 2 by one 3x3 convolution, for images of 28 and 32 px.
      width: multiplier of all convolution widths except the auxiliary heads', for small data.
      remat: whether to recompute each Inception module in the backward pass, to save memory.
    """

    original: bool = False
    dropout: float = 0.2
    aux_heads: bool = True
    aux_dropout: float = 0.7
    stem: Literal['imagenet', 'small'] = 'imagenet'
    width: float = 1.0
    remat: bool = False

    input_shape: ClassVar = (224, 224, 3)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images of at least 32 px (small stem: 4).

        Training with the published auxiliary heads needs at least 79 px (small stem: 10).
        """
        self._check(images, train)
        endpoints: Endpoints = {}
        x = self._stem(images.astype(self.dtype), endpoints, train)
        # Inception modules, with the auxiliary heads on 4a and 4d.
        module = nn.remat(Inception, static_argnums=(2,)) if self.remat else Inception
        aux = []
        for name, published in WIDTHS.items():
            widths = tuple(scaled(width, self.width) for width in published)
            if name == '4a':
                x = max_pool(x, 3, 2, ceil=True)
            if name == '5a':
                x = max_pool(x, 3 if self.original else 2, 2, ceil=True)
            x = module(widths, self.original, self.dtype, name=f'inception{name}')(x, train)
            x = self.record(endpoints, name, x)
            if name in ('4a', '4d') and self.aux_heads and (train or self.is_initializing()):
                args = (self.num_classes, self.aux_dropout, self.original, self.dtype)
                aux.append(AuxiliaryHead(*args, name='aux1' if name == '4a' else 'aux2')(x, train))
        if train and aux:
            endpoints['aux'] = tuple(aux)
        # Classifier.
        x = nn.Dropout(self.dropout)(global_avg_pool(x), deterministic=not train)
        x = self.record(endpoints, 'features', x)
        init = fan_in_uniform if self.original else truncated_normal(0.01)
        logits = Dense(
            self.num_classes,
            kernel_init=init,
            dtype=self.dtype,
            output_dtype=jnp.float32,
            name='fc',
        )
        return logits(x), endpoints

    def _stem(self, x: jax.Array, endpoints: Endpoints, train: bool) -> jax.Array:
        """Applies stages 1 and 2."""

        def unit(width: int, *args: Any, **kwargs: Any) -> ConvUnit:
            arguments = {'original': self.original, 'dtype': self.dtype} | kwargs
            return ConvUnit(scaled(width, self.width), *args, **arguments)

        # Only the published form has local response normalisation.
        norm = local_response_norm if self.original else lambda x: x
        if self.stem == 'small':
            x = norm(unit(192, 3, padding=1, name='conv3')(x, train))
            return self.record(endpoints, 'stage2', x)
        # Stage 1.
        x = unit(64, 7, strides=2, padding=3, name='conv1')(x, train)
        x = self.record(endpoints, 'stage1', norm(max_pool(x, 3, 2, ceil=True)))
        # Stage 2.
        x = unit(64, 1, name='conv2')(x, train)
        x = norm(unit(192, 3, padding=1, name='conv3')(x, train))
        return self.record(endpoints, 'stage2', max_pool(x, 3, 2, ceil=True))

    def _check(self, images: jax.Array, train: bool) -> None:
        """Raises UserError if the images are too small for the model or its auxiliary heads."""
        small = self.stem == 'small'
        hint = '' if small else "stem='small' takes smaller images"
        min_size = 4 if small else 32
        # The published heads pool 5x5 windows from maps of (H + 1) // 16 px (small stem: H // 2).
        if self.original and self.aux_heads and (train or self.is_initializing()):
            hint = 'aux_heads=False trains on smaller images'
            min_size = 10 if small else 79
        self.check_images(images, min_size=min_size, hint=hint)
