"""Residual blocks of ResNet, Wide ResNet and ResNeXt, with squeeze-and-excitation."""

from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.layers import BatchNorm, Conv, Dense, global_avg_pool, he_normal_fan_out
from vision.models.transformer import DropPath

Shortcut = Literal['A', 'B', 'C', 'D', 'none']


def pad_shortcut(x: jax.Array, features: int, strides: int) -> jax.Array:
    """Option A (section 3.3): subsamples by `strides` and pads new channels with zeros."""
    x = x[:, ::strides, ::strides]
    return jnp.pad(x, ((0, 0),) * 3 + ((0, features - x.shape[-1]),))


def halve(x: jax.Array) -> jax.Array:
    """Averages [B, H, W, C] over 2x2 windows; an odd side ends with a window of one pixel."""
    padding = [(0, side % 2) for side in x.shape[1:3]]
    return nn.avg_pool(x, (2, 2), (2, 2), padding, count_include_pad=False)


class SqueezeExcite(nn.Module):
    """Weights channels by a function of their means (Hu et al. 2018, section 3, reduction 16).

    The reduced number of channels is rounded to a multiple of 8, at least 8, as in timm.
    """

    kernel_init: Any = he_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        channels = x.shape[-1]
        init = {'kernel_init': self.kernel_init, 'dtype': self.dtype}
        reduced = max(8, (channels // 16 + 4) // 8 * 8)
        y = nn.relu(Dense(reduced, **init, name='fc1')(global_avg_pool(x)))
        y = nn.sigmoid(Dense(channels, **init, name='fc2')(y))
        return x * y[:, None, None]


class Block(nn.Module):
    """Base class of the residual blocks: layers and shortcut.

    Attributes:
      width: width of the block's inner convolutions.
      strides: strides of the block.
      shortcut: option of section 3.3: 'A' pads with zeros and 'B' projects where the shape changes,
        'C' always projects. 'D' averages 2x2 pixels before the projection, where 'B' discards three
        of four (He et al. 2018, Bag of Tricks, ResNet-D). 'none' has no shortcut, for comparison
        with plain networks.
      zero_init: whether the last norm's scale is initialised to 0, so that the block starts as the
        identity.
      groups, base_width: groups and width of a bottleneck's 3x3 convolution (ResNeXt, Wide ResNet).
      stride_in: which convolution of a bottleneck has the stride.
      squeeze_excite: whether to weight the channels of the residual branch (Hu et al. 2018).
      drop_path: probability that an image skips the block in training (Huang et al. 2016).
    """

    width: int
    strides: int = 1
    shortcut: Shortcut = 'B'
    zero_init: bool = False
    groups: int = 1
    base_width: int = 64
    stride_in: Literal['1x1', '3x3'] = '3x3'
    squeeze_excite: bool = False
    drop_path: float = 0.0
    kernel_init: Any = he_normal_fan_out
    dtype: Any = jnp.float32

    expansion: ClassVar[int] = 1

    def conv(self, features: int, kernel: int, name: str, **kwargs: Any) -> Conv:
        """Makes a convolution without bias, padded to keep the size at stride 1."""
        init = {'kernel_init': self.kernel_init, 'dtype': self.dtype}
        return Conv(
            features, kernel, padding=kernel // 2, use_bias=False, name=name, **init, **kwargs
        )

    def norm(self, name: str, last: bool = False) -> BatchNorm:
        """Makes a batch normalisation; the `last` one of a block may have an initial scale of 0."""
        zero = last and self.zero_init
        init = nn.initializers.zeros if zero else nn.initializers.ones
        return BatchNorm(scale_init=init, dtype=self.dtype, name=name)

    def add(self, y: jax.Array, x: jax.Array, train: bool) -> jax.Array:
        """Adds the residual branch `y` to the shortcut of the block's input `x`."""
        if self.squeeze_excite:
            y = SqueezeExcite(self.kernel_init, self.dtype, name='se')(y)
        y = DropPath(self.drop_path)(y, train)
        return nn.relu(y + self.shortcut_of(x, y.shape[-1], train))

    def shortcut_of(self, x: jax.Array, features: int, train: bool) -> jax.Array:
        """Returns `x`, padded or projected if the residual has another shape."""
        if self.shortcut == 'none':
            return jnp.zeros((), x.dtype)
        # Use the identity, unless the shape changes or option C always projects.
        same = self.strides == 1 and x.shape[-1] == features
        if same and self.shortcut != 'C':
            return x
        if self.shortcut == 'A':
            return pad_shortcut(x, features, self.strides)
        strides = self.strides
        if self.shortcut == 'D' and strides > 1:
            x, strides = halve(x), 1
        x = self.conv(features, 1, 'shortcut_conv', strides=strides)(x)
        return self.norm('shortcut_bn')(x, train)


class BasicBlock(Block):
    """Figure 5, left: two 3x3 convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / strides, W / strides, width]."""
        y = self.conv(self.width, 3, 'conv1', strides=self.strides)(x)
        y = nn.relu(self.norm('bn1')(y, train))
        y = self.conv(self.width, 3, 'conv2')(y)
        y = self.norm('bn2', last=True)(y, train)
        return self.add(y, x, train)


class Bottleneck(Block):
    """Figure 5, right: 1x1 to reduce, 3x3 (grouped in ResNeXt), 1x1 to four times the width."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / strides, W / strides, 4 width]."""
        # ResNeXt and Wide ResNet change the width of the 3x3 convolution.
        inner = self.width * self.base_width // 64 * self.groups
        first, second = (self.strides, 1) if self.stride_in == '1x1' else (1, self.strides)
        y = self.conv(inner, 1, 'conv1', strides=first)(x)
        y = nn.relu(self.norm('bn1')(y, train))
        y = self.conv(inner, 3, 'conv2', strides=second, groups=self.groups)(y)
        y = nn.relu(self.norm('bn2')(y, train))
        y = self.conv(4 * self.width, 1, 'conv3')(y)
        y = self.norm('bn3', last=True)(y, train)
        return self.add(y, x, train)


BLOCKS: dict[str, type[Block]] = {'basic': BasicBlock, 'bottleneck': Bottleneck}
