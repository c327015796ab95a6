"""Pre-activation ResNet, or ResNet v2 (He, Zhang, Ren, Sun 2016), and Wide ResNet for CIFAR."""

from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.base import Endpoints, ImageModel
from vision.models.layers import BatchNorm, Conv, global_avg_pool, he_normal, max_pool
from vision.models.residual import pad_shortcut
from vision.models.resnet import check_size, classify, stem_convolution


class PreActivationBlock(nn.Module):
    """Pre-activation block (figure 4e): norm and ReLU come before each convolution.

    In the network's first block, `activated` is True, because the stem ends with norm and ReLU
    (appendix). Where the shape changes, the shortcut is a 1x1 convolution of the activated input,
    or zero padding with option 'A'. `dropout` comes before the last convolution (Zagoruyko and
    Komodakis 2016, section 2.4).
    """

    width: int
    strides: int
    bottleneck: bool
    shortcut: Literal['A', 'B'] = 'B'
    activated: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / strides, W / strides, width, or 4 width]."""
        features = self.width * (4 if self.bottleneck else 1)
        conv = partial(Conv, use_bias=False, kernel_init=he_normal, dtype=self.dtype)
        drop = partial(nn.Dropout(self.dropout), deterministic=not train)

        def activate(x: jax.Array, name: str) -> jax.Array:
            return nn.relu(BatchNorm(dtype=self.dtype, name=name)(x, train))

        # Shortcut.
        y = x if self.activated else activate(x, 'bn1')
        shortcut = x
        if self.strides > 1 or x.shape[-1] != features:
            if self.shortcut == 'A':
                shortcut = pad_shortcut(y, features, self.strides)
            else:
                shortcut = conv(features, 1, self.strides, name='shortcut_conv')(y)
        # Residual.
        if self.bottleneck:
            y = activate(conv(self.width, 1, name='conv1')(y), 'bn2')
            y = activate(conv(self.width, 3, self.strides, 1, name='conv2')(y), 'bn3')
            y = conv(features, 1, name='conv3')(drop(y))
        else:
            y = activate(conv(self.width, 3, self.strides, 1, name='conv1')(y), 'bn2')
            y = conv(features, 3, padding=1, name='conv2')(drop(y))
        return y + shortcut


class ResNetV2(ImageModel):
    """ResNet v2.

    He et al., Identity Mappings in Deep Residual Networks, 2016, section 3 and appendix.

    | stage    | shape        |                                                |
    |----------|--------------|------------------------------------------------|
    | input    | 224, 224, 3  |                                                |
    | stem     | 56, 56, 64   | 7x7 stride 2, norm, ReLU, pool 3 stride 2      |
    | stage1   | 56, 56, 256  |                                                |
    | stage2   | 28, 28, 512  |                                                |
    | stage3   | 14, 14, 1024 |                                                |
    | stage4   | 7, 7, 2048   | (a quarter of the channels without bottleneck) |
    | features | 2048         | norm, ReLU, mean over positions                |
    | logits   | K            |                                                |

    Attributes:
      stage_sizes, widths: number of blocks and width of each stage.
      bottleneck: three convolutions per block instead of two.
      shortcut: 'A' pads with zeros where the shape changes, 'B' projects.
      dropout: rate within each block, see `PreActivationBlock`.
      stem_width: number of channels of the stem; 0 for that of the first stage.
      stem: 'small' uses 3x3 stride 1 and no pooling.
      remat: whether to recompute each block in the backward pass, to save memory.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = True
    shortcut: Literal['A', 'B'] = 'B'
    dropout: float = 0.0
    stem_width: int = 0
    stem: Literal['imagenet', 'small'] = 'imagenet'
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images not smaller than the total stride."""
        check_size(self, images)
        endpoints: Endpoints = {}
        # Stem.
        x = stem_convolution(self, he_normal, self.stem_width)(images.astype(self.dtype))
        x = nn.relu(BatchNorm(dtype=self.dtype, name='bn1')(x, train))
        x = x if self.stem == 'small' else max_pool(x, 3, 2, padding=1)
        x = self.record(endpoints, 'stem', x)
        block: Any = PreActivationBlock
        if self.remat:
            block = nn.remat(PreActivationBlock, static_argnums=(2,))
        # Each stage except the first halves the size in its first block.
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                x = block(
                    self.widths[stage],
                    strides=2 if stage > 0 and i == 0 else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    activated=stage == i == 0,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    name=f'layer{stage + 1}_{i}',
                )(x, train)
            x = self.record(endpoints, f'stage{stage + 1}', x)
        # Apply norm and ReLU after the last addition.
        x = nn.relu(BatchNorm(dtype=self.dtype, name='bn_last')(x, train))
        x = self.record(endpoints, 'features', global_avg_pool(x))
        return classify(self, x), endpoints


class CifarResNetV2(ResNetV2):
    """ResNet v2 for CIFAR-10: He et al. 2016, section 4. 110 layers; 164 and 1001 with bottleneck.

    Wide ResNet (Zagoruyko and Komodakis, Wide Residual Networks, 2016, table 1) multiplies the
    widths, except that of the stem, by k. WRN-d-k has (d - 4) / 6 blocks of two 3x3 in each stage.
    Parameters for 10 classes: WRN-28-10 36,479,194; WRN-40-4 8,949,210.

    | stage    | shape      |                                             |
    |----------|------------|---------------------------------------------|
    | input    | 32, 32, 3  |                                             |
    | stem     | 32, 32, 16 | 3x3, norm, ReLU                             |
    | stage1   | 32, 32, 16 | n blocks (64 channels with bottleneck)      |
    | stage2   | 16, 16, 32 | n blocks (128)                              |
    | stage3   | 8, 8, 64   | n blocks (256)                              |
    | features | 64         | norm, ReLU, mean over positions (256)       |
    | logits   | K          |                                             |
    """

    num_classes: int = 10
    stage_sizes: tuple[int, ...] = (18, 18, 18)
    widths: tuple[int, ...] = (16, 32, 64)
    stem: Literal['imagenet', 'small'] = 'small'

    input_shape: ClassVar = (32, 32, 3)
    default_classes: ClassVar = 10
