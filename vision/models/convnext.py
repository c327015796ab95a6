"""ConvNeXt (Liu, Mao, Wu, Feichtenhofer, Darrell and Xie 2022)."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.models.base import Endpoints, ImageModel
from vision.models.layers import Conv, Dense, global_avg_pool, normal
from vision.models.transformer import DropPath, LayerNorm, LayerScale

# The authors' initialisation of kernels, which they truncate at ±2 (100 σ). Biases start at 0.
_init = normal(0.02)


class Block(nn.Module):
    """Figure 4, right: depthwise 7x7, norm, 1x1 to four times the width, GELU, 1x1.

    Attributes:
      drop_path: probability that an image skips the block in training (Huang et al. 2016).
      layer_scale: initial value of the residual branch's factor for each channel.
    """

    drop_path: float = 0.0
    layer_scale: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        channels = x.shape[-1]
        make: dict[str, Any] = {'kernel_init': _init, 'dtype': self.dtype}
        y = Conv(channels, 7, padding=3, groups=channels, **make, name='depthwise_conv')(x)
        y = LayerNorm(dtype=self.dtype, name='norm')(y)
        y = nn.gelu(Dense(4 * channels, **make, name='fc1')(y), approximate=False)
        y = Dense(channels, **make, name='fc2')(y)
        y = LayerScale(self.layer_scale, dtype=self.dtype, name='layer_scale')(y)
        return x + DropPath(self.drop_path)(y, train)


class ConvNeXt(ImageModel):
    """ConvNeXt: Liu et al., A ConvNet for the 2020s, 2022, section 2 and table 9.

    Parameters: tiny 28,589,128; small 50,223,688; base 88,591,464; large 197,767,336.

    | stage    | shape (tiny)  |                                             |
    |----------|---------------|---------------------------------------------|
    | input    | 224, 224, 3   |                                             |
    | stem     | 56, 56, 96    | 4x4 stride 4, norm                          |
    | stage1   | 56, 56, 96    | 3 blocks                                    |
    | stage2   | 28, 28, 192   | norm, 2x2 stride 2, 3 blocks                |
    | stage3   | 14, 14, 384   | norm, 2x2 stride 2, 9 blocks                |
    | stage4   | 7, 7, 768     | norm, 2x2 stride 2, 3 blocks                |
    | features | 768           | mean over positions, norm                   |
    | logits   | K             |                                             |

    Attributes:
      stage_sizes, widths: number of blocks and width of each stage.
      drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
      layer_scale: see `Block`.
      stem: 'small' is for images of 28 and 32 px: 3x3 stride 1, with maps of the same sizes as in
        ResNet with the small stem. With stride 2 the last stage would have 2x2 positions, where a
        7x7 kernel covers mostly padding.
      remat: whether to recompute each block in the backward pass, to save memory.
    """

    stage_sizes: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    drop_path: float = 0.1
    layer_scale: float = 1e-6
    stem: Literal['imagenet', 'small'] = 'imagenet'
    remat: bool = False

    default_classes: ClassVar = 1000

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images of at least 32 px (small stem: 8)."""
        self._check(images)
        endpoints: Endpoints = {}
        conv = partial(Conv, kernel_init=_init, dtype=self.dtype)
        norm = partial(LayerNorm, dtype=self.dtype)
        # Stem.
        size, strides, padding = (3, 1, 1) if self.stem == 'small' else (4, 4, 0)
        x = images.astype(self.dtype)
        x = conv(self.widths[0], size, strides, padding, name='stem_conv')(x)
        x = self.record(endpoints, 'stem', norm(name='stem_norm')(x))
        # Each stage except the first halves the size before its blocks.
        blocks = self._blocks()
        for stage, (width, count) in enumerate(zip(self.widths, self.stage_sizes, strict=True), 1):
            if stage > 1:
                x = norm(name=f'downsample{stage}_norm')(x)
                x = conv(width, 2, 2, name=f'downsample{stage}_conv')(x)
            for i in range(count):
                x = next(blocks)(name=f'stage{stage}_{i}')(x, train)
            x = self.record(endpoints, f'stage{stage}', x)
        # Head: the norm comes after pooling.
        x = self.record(endpoints, 'features', norm(name='norm')(global_avg_pool(x)))
        head = Dense(
            self.num_classes,
            kernel_init=_init,
            dtype=self.dtype,
            output_dtype=jnp.float32,
            name='head',
        )
        return head(x), endpoints

    def _blocks(self) -> Iterator[Callable[..., Block]]:
        """Yields the constructor of each block, with its rate of stochastic depth."""
        cls = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        total = sum(self.stage_sizes)
        for i in range(total):
            rate = self.drop_path * i / max(total - 1, 1)
            yield partial(cls, drop_path=rate, layer_scale=self.layer_scale, dtype=self.dtype)

    def _check(self, images: jax.Array) -> None:
        # The imagenet stem has a stride of 4; each stage except the first halves the size.
        small = self.stem == 'small'
        stride = 2 ** (len(self.stage_sizes) - 1) * (1 if small else 4)
        hint = '' if small else "stem='small' takes smaller images"
        self.check_images(images, min_size=stride, hint=hint)
