"""ResNet (He, Zhang, Ren, Sun 2015), Wide ResNet, ResNeXt, and the CIFAR-10 form of ResNet."""

from collections.abc import Callable
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
    fan_in_uniform,
    global_avg_pool,
    he_normal,
    he_normal_fan_out,
    max_pool,
    uniform_bias,
)

Shortcut = Literal['A', 'B', 'C', 'none']


def pad_shortcut(x: jax.Array, features: int, strides: int) -> jax.Array:
    """Option A (section 3.3): subsamples by `strides` and pads new channels with zeros."""
    x = x[:, ::strides, ::strides]
    return jnp.pad(x, ((0, 0),) * 3 + ((0, features - x.shape[-1]),))


class Block(nn.Module):
    """Base class of the residual blocks: layers and shortcut.

    Attributes:
      width: width of the block's inner convolutions.
      strides: strides of the block.
      shortcut: option of section 3.3: 'A' pads with zeros and 'B' projects where the shape changes,
        'C' always projects. 'none' gives the plain network for comparison.
      zero_init: whether the last norm's scale is initialised to 0, so that the block starts as the
        identity.
      groups, base_width: groups and width of a bottleneck's 3x3 convolution (ResNeXt, Wide ResNet).
      stride_in: which convolution of a bottleneck has the stride.
    """

    width: int
    strides: int = 1
    shortcut: Shortcut = 'B'
    zero_init: bool = False
    groups: int = 1
    base_width: int = 64
    stride_in: Literal['1x1', '3x3'] = '3x3'
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
        x = self.conv(features, 1, 'shortcut_conv', strides=self.strides)(x)
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
        return nn.relu(y + self.shortcut_of(x, self.width, train))


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
        return nn.relu(y + self.shortcut_of(x, 4 * self.width, train))


BLOCKS: dict[str, type[Block]] = {'basic': BasicBlock, 'bottleneck': Bottleneck}


class ResNet(ImageModel):
    """ResNet: He et al., Deep Residual Learning for Image Recognition, 2015, section 3.3, table 1.

    The bottleneck has its stride in the 3x3 convolution (v1.5, the current form), or with
    `stride_in='1x1'` in the first 1x1 convolution, as in the paper. Wide ResNet (Zagoruyko and
    Komodakis 2016) doubles the `base_width`, ResNeXt (Xie et al. 2017) has 32 groups.

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
      block, shortcut, groups, base_width, stride_in: see `Block`.
      zero_init_residual: whether each block starts as the identity (Goyal et al. 2017, section
        5.1).
      weight_init: He et al.'s normal initialisation, with n counted over 'fan_out' or 'fan_in'.
      stem: 'small' uses 3x3 stride 1 and no pooling, for images of 28 and 32 px.
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
    stem: Literal['imagenet', 'small'] = 'imagenet'
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images not smaller than the total stride."""
        check_size(self, images)
        endpoints: Endpoints = {}
        # Stem.
        x = self._stem(images.astype(self.dtype), train)
        x = self.record(endpoints, 'stem', x)
        # Each stage but the first halves the size in its first block.
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                strides = 2 if stage > 0 and i == 0 else 1
                make = self._block()
                x = make(self.widths[stage], strides, name=f'layer{stage + 1}_{i}')(x, train)
            x = self.record(endpoints, f'stage{stage + 1}', x)
        x = self.record(endpoints, 'features', global_avg_pool(x))
        return classify(self, x), endpoints

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the first convolution, norm, ReLU and pooling."""
        x = stem_convolution(self, self._kernel_init())(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name='bn1')(x, train))
        return x if self.stem == 'small' else max_pool(x, 3, 2, padding=1)

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
    stem: Literal['imagenet', 'small'] = 'small'

    input_shape: ClassVar = (32, 32, 3)
    default_classes: ClassVar = 10


def check_size(model: Any, images: jax.Array) -> None:
    """Raises UserError if an image is smaller than the total stride of a residual network."""
    small = model.stem == 'small'
    # The imagenet stem has a stride of 4; each stage but the first halves the size.
    stride = 2 ** (len(model.stage_sizes) - 1) * (1 if small else 4)
    hint = '' if small else "stem='small' takes smaller images"
    model.check_images(images, min_size=stride, hint=hint)


def stem_convolution(model: Any, kernel_init: Any) -> Conv:
    """Makes the first convolution: 7x7 stride 2, or 3x3 with the small stem."""
    kernel, strides = (3, 1) if model.stem == 'small' else (7, 2)
    return Conv(
        model.widths[0],
        kernel,
        strides,
        kernel // 2,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=model.dtype,
        name='conv1',
    )


def classify(model: Any, x: jax.Array) -> jax.Array:
    """Last layer: features [B, D] -> logits float32 [B, K]."""
    return Dense(
        model.num_classes,
        kernel_init=fan_in_uniform,
        bias_init=uniform_bias(x.shape[-1]),
        dtype=model.dtype,
        output_dtype=jnp.float32,
        name='fc',
    )(x)
