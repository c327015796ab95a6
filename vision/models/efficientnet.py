"""EfficientNet (Tan and Le 2019) and EfficientNet-Lite (Liu 2020)."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.core.errors import UserError
from vision.models.base import Endpoints, ImageModel
from vision.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    global_avg_pool,
    he_normal,
    he_normal_fan_out,
)

Framework = Literal['tensorflow', 'torch']

# BatchNorm's constants in the authors' TensorFlow code, and in torchvision.
_BATCH_NORM: dict[str, dict[str, Any]] = {
    'tensorflow': {'momentum': 0.99, 'epsilon': 1e-3},
    'torch': {'momentum': 0.9, 'epsilon': 1e-5},
}
# A dense kernel [in, out] drawn from U(±1/√out), as in the authors' code.
_fan_out_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_out', 'uniform')


class Stage(NamedTuple):
    """A row of table 1: blocks of one kind; only the first block has the stride."""

    kernel: int
    expansion: int
    channels: int
    repeats: int
    strides: int


# Table 1, stages 2 to 8. The strides are those of the authors' code, where the resolution changes.
STAGES = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 6, 24, 2, 2),
    Stage(5, 6, 40, 2, 2),
    Stage(3, 6, 80, 3, 2),
    Stage(5, 6, 112, 3, 1),
    Stage(5, 6, 192, 4, 2),
    Stage(3, 6, 320, 1, 1),
)
_STEM, _TOP = 32, 1280


def round_filters(channels: int, width: float) -> int:
    """Returns `channels` times `width`, rounded to a multiple of 8 that is at least 90 % of it."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Returns `repeats` times `depth`, rounded up."""
    return math.ceil(depth * repeats)


class MBConv(nn.Module):
    """Inverted residual block (Sandler et al. 2018): 1x1 expansion, depthwise, 1x1 projection.

    Attributes:
      channels: number of output channels.
      kernel: side of the depthwise kernel.
      expansion: factor of the inner width; with 1 there is no first convolution.
      drop_path: probability that an image skips the block in training (Huang et al. 2016), if the
        block has a shortcut.
      lite: whether to use ReLU6 without squeeze-and-excitation instead of swish with it.
      framework, bn_momentum: see `EfficientNet`.
    """

    channels: int
    kernel: int
    strides: int = 1
    expansion: int = 6
    drop_path: float = 0.0
    lite: bool = False
    framework: Framework = 'tensorflow'
    bn_momentum: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / strides, W / strides, channels]."""
        shortcut, inner = x, x.shape[-1] * self.expansion
        layers = Layers(self.framework, self.bn_momentum, self.dtype)
        activation = nn.relu6 if self.lite else nn.silu
        # Expansion.
        if self.expansion != 1:
            x = layers.conv(inner, 1, name='expand_conv')(x)
            x = activation(layers.norm('expand_bn')(x, train))
        # Depthwise convolution. He's initialisation is by fan-in, with one input channel.
        depthwise = partial(layers.conv, groups=inner, kernel_init=he_normal)
        x = depthwise(inner, self.kernel, strides=self.strides, name='depthwise_conv')(x)
        x = activation(layers.norm('depthwise_bn')(x, train))
        if not self.lite:
            x = x * self._excitation(x, max(1, shortcut.shape[-1] // 4))
        # Projection and shortcut.
        x = layers.conv(self.channels, 1, name='project_conv')(x)
        x = layers.norm('project_bn')(x, train)
        if x.shape != shortcut.shape:
            return x
        # Draw once per image whether to skip the block.
        x = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(x, deterministic=not train)
        return x + shortcut

    def _excitation(self, x: jax.Array, reduced: int) -> jax.Array:
        """Returns a factor for each channel, [B, 1, 1, C], from the means (Hu et al. 2018)."""
        conv = partial(Conv, kernel_size=1, dtype=self.dtype)
        y = conv(reduced, name='se_reduce')(global_avg_pool(x)[:, None, None])
        return nn.sigmoid(conv(x.shape[-1], name='se_expand')(nn.silu(y)))


class Layers(NamedTuple):
    """Convolutions and norms with a framework's padding and constants."""

    framework: Framework
    bn_momentum: float | None
    dtype: Any

    def conv(self, features: int, kernel: int, **kwargs: Any) -> Conv:
        """Makes a convolution without bias, padded to keep the size at stride 1."""
        padding: Any = 'same' if self.framework == 'tensorflow' else kernel // 2
        kwargs = {'kernel_init': he_normal_fan_out, **kwargs}
        return Conv(features, kernel, padding=padding, use_bias=False, dtype=self.dtype, **kwargs)

    def norm(self, name: str) -> BatchNorm:
        """Makes a batch normalisation."""
        constants = dict(_BATCH_NORM[self.framework])
        if self.bn_momentum is not None:
            constants['momentum'] = self.bn_momentum
        return BatchNorm(**constants, dtype=self.dtype, name=name)


class EfficientNet(ImageModel):
    """EfficientNet: Tan and Le, EfficientNet: Rethinking Model Scaling for CNNs, 2019, table 1.

    `width` and `depth` are the compound coefficients of section 3.3, rounded as in the authors'
    code. B0 to B4 have (1, 1), (1, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8). Parameters: B0
    5,288,548; B1 7,794,184; B2 9,109,994; B3 12,233,232; B4 19,341,616; Lite0 4,652,008;
    Lite1 5,416,680; Lite2 6,092,072; Lite3 8,197,096; Lite4 13,006,568.

    | stage    | shape (B0)    |                                             |
    |----------|---------------|---------------------------------------------|
    | input    | 224, 224, 3   |                                             |
    | stem     | 112, 112, 32  | 3x3 stride 2                                |
    | stage1   | 112, 112, 16  | 1 block 3x3 without expansion               |
    | stage2   | 56, 56, 24    | 2 blocks 3x3, the first with stride 2       |
    | stage3   | 28, 28, 40    | 2 blocks 5x5, the first with stride 2       |
    | stage4   | 14, 14, 80    | 3 blocks 3x3, the first with stride 2       |
    | stage5   | 14, 14, 112   | 3 blocks 5x5                                |
    | stage6   | 7, 7, 192     | 4 blocks 5x5, the first with stride 2       |
    | stage7   | 7, 7, 320     | 1 block 3x3                                 |
    | top      | 7, 7, 1280    | 1x1                                         |
    | features | 1280          | mean over positions                         |
    | logits   | K             | after dropout                               |

    Attributes:
      width: coefficient of the channels.
      depth: coefficient of the number of blocks.
      resolution: side of the published model's images; images of other sizes are accepted, too.
      dropout: rate before the classifier.
      drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
      lite: whether to build EfficientNet-Lite for mobile devices: ReLU6, no squeeze-and-excitation,
        and the same stem, top, and number of blocks in the first and last stage at all scales.
      framework: padding and BatchNorm constants. 'tensorflow' is the authors' code: padding 'same',
        asymmetric at stride 2, and ε 1e-3. 'torch' is torchvision: symmetric padding and ε 1e-5.
      bn_momentum: momentum of BatchNorm's running statistics; None for the framework's, 0.99
        (TensorFlow) or 0.9 (torch). With 0.99 they lag behind the weights for hundreds of steps.
      stem: 'small' is for images of 28 and 32 px: the first convolution has stride 1.
      remat: whether to recompute each block in the backward pass, to save memory.
    """

    width: float = 1.0
    depth: float = 1.0
    resolution: int = 224
    dropout: float = 0.2
    drop_path: float = 0.2
    lite: bool = False
    framework: Framework = 'tensorflow'
    bn_momentum: float | None = None
    stem: Literal['imagenet', 'small'] = 'imagenet'
    remat: bool = False

    default_classes: ClassVar = 1000

    @property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(H, W, C) of the published model."""
        return self.resolution, self.resolution, 3

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images of at least 32 px (small stem: 16)."""
        self._check(images)
        layers = Layers(self.framework, self.bn_momentum, self.dtype)
        activation = nn.relu6 if self.lite else nn.silu
        width = 1.0 if self.lite else self.width  # of the stem and the top
        endpoints: Endpoints = {}
        # Stem.
        strides = 1 if self.stem == 'small' else 2
        x = images.astype(self.dtype)
        x = layers.conv(round_filters(_STEM, width), 3, strides=strides, name='stem_conv')(x)
        x = activation(layers.norm('stem_bn')(x, train))
        x = self.record(endpoints, 'stem', x)
        # Blocks; the last block of each stage gives an endpoint.
        blocks = list(self._blocks())
        for i, (stage, make) in enumerate(blocks):
            x = make(drop_path=self.drop_path * i / len(blocks), name=f'block{i}')(x, train)
            if i + 1 == len(blocks) or blocks[i + 1][0] != stage:
                x = self.record(endpoints, f'stage{stage}', x)
        # Top and classifier.
        x = layers.conv(round_filters(_TOP, width), 1, name='top_conv')(x)
        x = activation(layers.norm('top_bn')(x, train))
        x = self.record(endpoints, 'top', x)
        x = self.record(endpoints, 'features', global_avg_pool(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        init = {'kernel_init': _fan_out_uniform, 'dtype': self.dtype, 'output_dtype': jnp.float32}
        return Dense(self.num_classes, **init, name='classifier')(x), endpoints

    def _blocks(self) -> Iterator[tuple[int, Callable[..., MBConv]]]:
        """Yields the stage number and the constructor of each block."""
        cls = nn.remat(MBConv, static_argnums=(2,)) if self.remat else MBConv
        for stage, row in enumerate(STAGES, 1):
            # Lite does not scale the depth of the first and the last stage.
            fixed = self.lite and stage in (1, len(STAGES))
            repeats = row.repeats if fixed else round_repeats(row.repeats, self.depth)
            for i in range(repeats):
                make = partial(
                    cls,
                    channels=round_filters(row.channels, self.width),
                    kernel=row.kernel,
                    strides=row.strides if i == 0 else 1,
                    expansion=row.expansion,
                    lite=self.lite,
                    framework=self.framework,
                    bn_momentum=self.bn_momentum,
                    dtype=self.dtype,
                )
                yield stage, make

    def _check(self, images: jax.Array) -> None:
        for name in ('width', 'depth', 'resolution'):
            if getattr(self, name) <= 0:
                raise UserError(f'EfficientNet: {name}={getattr(self, name)} is not above 0')
        small = self.stem == 'small'
        hint = '' if small else "stem='small' takes smaller ones"
        self.check_images(images, min_size=16 if small else 32, hint=hint)
