"""ResNet (He, Zhang, Ren, Sun 2015), its form for CIFAR-10, and its variants.

The variants are Wide ResNet, ResNeXt, SE-ResNet, ResNet-D and SSCD's network.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision.models.base import Endpoints, ImageModel
from vision.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    before_sum,
    fan_in_uniform,
    global_avg_pool,
    glorot_uniform,
    he_normal,
    he_normal_fan_out,
    max_pool,
    uniform_bias,
)
from vision.models.residual import BLOCKS, Block, Shortcut


class ResNet(ImageModel):
    """ResNet: He et al., Deep Residual Learning for Image Recognition, 2015, section 3.3, table 1.

    The stride of a bottleneck is in the 3x3 convolution (v1.5, the current form) or, with
    `stride_in='1x1'`, in the first 1x1 convolution, as in the paper. Wide ResNet (Zagoruyko and
    Komodakis 2016) doubles the `base_width`, ResNeXt (Xie et al. 2017) has 32 groups, and SE-ResNet
    (Hu et al. 2018) weights the channels of each block. ResNet-D (He et al. 2018, Bag of Tricks,
    figure 2) has the 'deep' stem and shortcut 'D'. The network of SSCD (Pizzi et al. 2022, section
    4) pools with power 3 and ends with an embedding of 512 values. Parameters: SE-ResNet-50
    28,088,024; ResNet-50-D 25,576,264.

    | stage    | shape        | 18, 34          | 50, 101, 152                  |
    |----------|--------------|-----------------|-------------------------------|
    | input    | 224, 224, 3  |                 |                               |
    | stem     | 56, 56, 64   | 7x7 stride 2, pool 3 stride 2                   |
    | stage1   | 56, 56, ...  | 64 channels     | 256 channels                  |
    | stage2   | 28, 28, ...  | 128             | 512                           |
    | stage3   | 14, 14, ...  | 256             | 1024                          |
    | stage4   | 7, 7, ...    | 512             | 2048                          |
    | features |              | 512             | 2048, mean over positions     |
    | logits   | K            |                 |                               |

    Attributes:
      stage_sizes: number of blocks in each stage.
      widths: width of each stage.
      block, shortcut, groups, base_width, stride_in, squeeze_excite: see `Block`.
      zero_init_residual: whether each block starts as the identity (Goyal et al. 2017, section
        5.1).
      weight_init: He et al.'s normal initialisation, with n counted over 'fan_out' or 'fan_in'.
      stem: 'small' uses 3x3 stride 1 and no pooling, for images of 28 and 32 px. 'deep' uses three
        3x3 instead of one 7x7.
      pooling_power: power p of the pooling, (mean of x^p)^(1/p) (GeM, Radenovic et al. 2018). 1 is
        the mean.
      embedding: size of a layer between pooling and the classifier whose output, divided by its
        norm, becomes `features`; 0 for none.
      drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
      remat: whether to recompute each block in the backward pass, to save memory.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: Literal['basic', 'bottleneck'] = 'bottleneck'
    shortcut: Shortcut = 'B'
    groups: int = 1
    base_width: int = 64
    stride_in: Literal['1x1', '3x3'] = '3x3'
    zero_init_residual: bool = True
    weight_init: Literal['fan_out', 'fan_in'] = 'fan_out'
    squeeze_excite: bool = False
    stem: Literal['imagenet', 'small', 'deep'] = 'imagenet'
    pooling_power: float = 1.0
    embedding: int = 0
    drop_path: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images not smaller than the total stride."""
        check_size(self, images)
        endpoints: Endpoints = {}
        # Stem.
        x = self._stem(images.astype(self.dtype), train)
        x = self.record(endpoints, 'stem', x)
        # Each stage except the first halves the size in its first block.
        rates = iter(np.linspace(0, self.drop_path, sum(self.stage_sizes)).tolist())
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                strides = 2 if stage > 0 and i == 0 else 1
                make = partial(self._block(), drop_path=next(rates))
                x = make(self.widths[stage], strides, name=f'layer{stage + 1}_{i}')(x, train)
            x = self.record(endpoints, f'stage{stage + 1}', x)
        # Pooling, embedding and classifier.
        x = global_avg_pool(x) if self.pooling_power == 1 else power_pool(x, self.pooling_power)
        if self.embedding:
            init: dict[str, Any] = {'kernel_init': glorot_uniform, 'dtype': self.dtype}
            x = unit_norm(Dense(self.embedding, **init, name='embedding')(x))
        x = self.record(endpoints, 'features', x)
        return classify(self, x), endpoints

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the first convolutions, norm, ReLU and pooling."""
        if self.stem == 'deep':
            x = self._deep_stem(x, train)
        else:
            x = stem_convolution(self, self._kernel_init())(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name='bn1')(x, train))
        return x if self.stem == 'small' else max_pool(x, 3, 2, padding=1)

    def _deep_stem(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies three 3x3 convolutions, the first with stride 2; norm and ReLU are in between."""
        narrow, wide = self.widths[0] // 2, self.widths[0]
        for i, (width, strides) in enumerate(((narrow, 2), (narrow, 1), (wide, 1)), 1):
            conv = partial(Conv, kernel_init=self._kernel_init(), dtype=self.dtype)
            x = conv(width, 3, strides, 1, use_bias=False, name=f'stem_conv{i}')(x)
            if i < 3:
                x = nn.relu(BatchNorm(dtype=self.dtype, name=f'stem_bn{i}')(x, train))
        return x

    def _block(self) -> Callable[..., Block]:
        """Returns the constructor of the blocks."""
        cls = BLOCKS[self.block]
        # All blocks share these arguments; width and strides differ.
        return partial(
            nn.remat(cls, static_argnums=(2,)) if self.remat else cls,
            shortcut=self.shortcut,
            zero_init=self.zero_init_residual,
            groups=self.groups,
            base_width=self.base_width,
            stride_in=self.stride_in,
            squeeze_excite=self.squeeze_excite,
            kernel_init=self._kernel_init(),
            dtype=self.dtype,
        )

    def _kernel_init(self) -> Any:
        return he_normal_fan_out if self.weight_init == 'fan_out' else he_normal


class CifarResNet(ResNet):
    """ResNet for CIFAR-10: He et al. 2015, section 4.2. 6n + 2 layers, shortcut option A.

    | stage    | shape      |                                     |
    |----------|------------|-------------------------------------|
    | input    | 32, 32, 3  |                                     |
    | stem     | 32, 32, 16 | 3x3                                 |
    | stage1   | 32, 32, 16 | n blocks of two 3x3                 |
    | stage2   | 16, 16, 32 | n blocks, the first with stride 2   |
    | stage3   | 8, 8, 64   | n blocks, the first with stride 2   |
    | features | 64         | mean over positions                 |
    | logits   | K          |                                     |
    """

    num_classes: int = 10
    stage_sizes: tuple[int, ...] = (3, 3, 3)
    widths: tuple[int, ...] = (16, 32, 64)
    block: Literal['basic', 'bottleneck'] = 'basic'
    shortcut: Shortcut = 'A'
    zero_init_residual: bool = False
    weight_init: Literal['fan_out', 'fan_in'] = 'fan_in'
    stem: Literal['imagenet', 'small', 'deep'] = 'small'

    input_shape: ClassVar = (32, 32, 3)
    default_classes: ClassVar = 10


def check_size(model: Any, images: jax.Array) -> None:
    """Raises UserError if an image is smaller than the total stride of a residual network."""
    small = model.stem == 'small'
    # The imagenet stem has a stride of 4; each stage except the first halves the size.
    stride = 2 ** (len(model.stage_sizes) - 1) * (1 if small else 4)
    hint = '' if small else "stem='small' takes smaller images"
    model.check_images(images, min_size=stride, hint=hint)


def power_pool(x: jax.Array, power: float) -> jax.Array:
    """Generalised mean of [B, H, W, C] over positions to [B, C], in float32 (GeM).

    Values below 1e-6 count as 1e-6, as in the authors' code of SSCD.
    """
    whole: Any = int(power) if power == int(power) else power  # JAX multiplies for integer powers
    mean = (jnp.maximum(before_sum(x).astype(jnp.float32), 1e-6) ** whole).mean((1, 2))
    return (mean ** (1 / power)).astype(x.dtype)


def unit_norm(x: jax.Array) -> jax.Array:
    """Divides each row of [B, D] by its Euclidean norm, in float32."""
    long = x.astype(jnp.float32)
    squared = jnp.square(long).sum(-1, keepdims=True)
    return (long * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))).astype(x.dtype)


def stem_convolution(model: Any, kernel_init: Any, width: int = 0) -> Conv:
    """Makes the first convolution: 7x7 stride 2, or 3x3 with the small stem.

    Its `width` is that of the first stage by default.
    """
    kernel, strides = (3, 1) if model.stem == 'small' else (7, 2)
    return Conv(
        width or model.widths[0],
        kernel,
        strides,
        kernel // 2,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=model.dtype,
        name='conv1',
    )


def classify(model: Any, x: jax.Array) -> jax.Array:
    """Applies the last layer: features [B, D] -> logits float32 [B, K]."""
    return Dense(
        model.num_classes,
        kernel_init=fan_in_uniform,
        bias_init=uniform_bias(x.shape[-1]),
        dtype=model.dtype,
        output_dtype=jnp.float32,
        name='fc',
    )(x)
