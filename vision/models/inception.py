"""Inception-v3 (Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015)."""

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
    Pair,
    avg_pool,
    global_avg_pool,
    max_pool,
    truncated_normal,
)


class ConvUnit(nn.Module):
    """A convolution, batch normalisation (ε 1e-3) and ReLU."""

    features: int
    kernel_size: Pair
    strides: int = 1
    padding: Pair = 0
    std: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            self.padding,
            use_bias=False,
            kernel_init=truncated_normal(self.std),
            dtype=self.dtype,
            name='conv',
        )(x)
        return nn.relu(BatchNorm(epsilon=1e-3, dtype=self.dtype, name='bn')(x, train))


def _runner(train: bool, dtype: Any) -> Callable[..., jax.Array]:
    """Returns `run(x, *units)`, which applies units in sequence within the calling module.

    A unit is (name, width, kernel[, strides]). A unit without strides keeps the size.
    """

    def run(x: jax.Array, *units: tuple) -> jax.Array:
        for name, width, kernel, *strides in units:
            same = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
            padding = 0 if strides else same
            stride = strides[0] if strides else 1
            unit = ConvUnit(width, kernel, stride, padding, dtype=dtype, name=name)
            x = unit(x, train)
        return x

    return run


class InceptionA(nn.Module):
    """Figure 5: 5x5 convolutions as two 3x3."""

    pool_features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, 35, 35, C] to [B, 35, 35, 224 + pool_features]."""
        run = _runner(train, self.dtype)
        b1 = run(x, ('branch1x1', 64, 1))
        b5 = run(x, ('branch5x5_1', 48, 1), ('branch5x5_2', 64, 5))
        b3 = run(x, ('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3), ('branch3x3dbl_3', 96, 3))
        pool = run(avg_pool(x, 3, 1, 1), ('branch_pool', self.pool_features, 1))
        return jnp.concatenate([b1, b5, b3, pool], axis=-1)


class ReductionA(nn.Module):
    """Figure 10: 35x35 to 17x17."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, 35, 35, 288] to [B, 17, 17, 768]."""
        run = _runner(train, self.dtype)
        b3 = run(x, ('branch3x3', 384, 3, 2))
        dbl = run(
            x,
            ('branch3x3dbl_1', 64, 1),
            ('branch3x3dbl_2', 96, 3),
            ('branch3x3dbl_3', 96, 3, 2),
        )
        return jnp.concatenate([b3, dbl, max_pool(x, 3, 2)], axis=-1)


class InceptionB(nn.Module):
    """Figure 6: 7x7 convolutions as 1x7 and 7x1."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, 17, 17, 768] to [B, 17, 17, 768]."""
        run = _runner(train, self.dtype)
        w, row, column = self.width, (1, 7), (7, 1)
        b1 = run(x, ('branch1x1', 192, 1))
        b7 = run(x, ('branch7x7_1', w, 1), ('branch7x7_2', w, row), ('branch7x7_3', 192, column))
        dbl = run(
            x,
            ('branch7x7dbl_1', w, 1),
            ('branch7x7dbl_2', w, column),
            ('branch7x7dbl_3', w, row),
            ('branch7x7dbl_4', w, column),
            ('branch7x7dbl_5', 192, row),
        )
        pool = run(avg_pool(x, 3, 1, 1), ('branch_pool', 192, 1))
        return jnp.concatenate([b1, b7, dbl, pool], axis=-1)


class ReductionB(nn.Module):
    """17x17 to 8x8, like figure 10."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, 17, 17, 768] to [B, 8, 8, 1280]."""
        run = _runner(train, self.dtype)
        b3 = run(x, ('branch3x3_1', 192, 1), ('branch3x3_2', 320, 3, 2))
        b7 = run(
            x,
            ('branch7x7x3_1', 192, 1),
            ('branch7x7x3_2', 192, (1, 7)),
            ('branch7x7x3_3', 192, (7, 1)),
            ('branch7x7x3_4', 192, 3, 2),
        )
        return jnp.concatenate([b3, b7, max_pool(x, 3, 2)], axis=-1)


class InceptionC(nn.Module):
    """Figure 7: 1x3 and 3x1 convolutions side by side."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, 8, 8, C] to [B, 8, 8, 2048]."""
        run = _runner(train, self.dtype)
        b1 = run(x, ('branch1x1', 320, 1))
        b3 = run(x, ('branch3x3_1', 384, 1))
        b3a = run(b3, ('branch3x3_2a', 384, (1, 3)))
        b3b = run(b3, ('branch3x3_2b', 384, (3, 1)))
        dbl = run(x, ('branch3x3dbl_1', 448, 1), ('branch3x3dbl_2', 384, 3))
        dbla = run(dbl, ('branch3x3dbl_3a', 384, (1, 3)))
        dblb = run(dbl, ('branch3x3dbl_3b', 384, (3, 1)))
        pool = run(avg_pool(x, 3, 1, 1), ('branch_pool', 192, 1))
        return jnp.concatenate([b1, b3a, b3b, dbla, dblb, pool], axis=-1)


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier (figure 8), with a narrower initialisation than the rest."""

    num_classes: int
    stem: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, 17, 17, 768] to logits [B, K]."""
        x = avg_pool(x, 3, 2) if self.stem == 'small' else avg_pool(x, 5, 3)
        # 1x1 projection, then 5x5 over the whole map.
        x = ConvUnit(128, 1, dtype=self.dtype, name='conv0')(x, train)
        x = ConvUnit(768, 5, std=0.01, dtype=self.dtype, name='conv1')(x, train)
        init = {'kernel_init': truncated_normal(0.001), 'dtype': self.dtype}
        logits = Dense(self.num_classes, **init, output_dtype=jnp.float32, name='fc')
        return logits(global_avg_pool(x))


# Table 1, with torchvision's names.
MODULES = {
    '5b': partial(InceptionA, 32),
    '5c': partial(InceptionA, 64),
    '5d': partial(InceptionA, 64),
    '6a': ReductionA,
    '6b': partial(InceptionB, 128),
    '6c': partial(InceptionB, 160),
    '6d': partial(InceptionB, 160),
    '6e': partial(InceptionB, 192),
    '7a': ReductionB,
    '7b': InceptionC,
    '7c': InceptionC,
}


class InceptionV3(ImageModel):
    """Inception-v3.

    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015, section 6,
    table 1. 23,834,568 parameters; 27,161,264 with the auxiliary head (section 4).

    | stage    | shape        |                                               |
    |----------|--------------|-----------------------------------------------|
    | input    | 299, 299, 3  |                                               |
    | stage1   | 73, 73, 64   | 3x3 stride 2, 3x3, 3x3 padded, pool 3 stride 2|
    | stage2   | 35, 35, 192  | 1x1 to 80, 3x3, pool 3 stride 2               |
    | 5b .. 5d | 35, 35, ...  | 256, 288, 288 channels (figure 5)             |
    | 6a .. 6e | 17, 17, 768  | reduction, then figure 6                      |
    | 7a       | 8, 8, 1280   | reduction                                     |
    | 7b, 7c   | 8, 8, 2048   | figure 7                                      |
    | features | 2048         | mean over positions, dropout                  |
    | logits   | K            |                                               |

    In training, `aux` has the logits of the head on 6e. Its loss is usually weighted by 0.4.

    Attributes:
      dropout: rate before the last layer.
      aux_heads: whether the auxiliary head exists. Its training needs images of at least 299 px.
      stem: 'small' is for images of 28 and 32 px: one 3x3 convolution replaces stages 1 and 2, and
        the auxiliary head pools less.
      remat: whether to recompute each module in the backward pass, to save memory.
    """

    dropout: float = 0.5
    aux_heads: bool = True
    stem: Literal['imagenet', 'small'] = 'imagenet'
    remat: bool = False

    input_shape: ClassVar = (299, 299, 3)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images of at least 75 px (small stem: 7)."""
        with_aux = self.aux_heads and (train or self.is_initializing())
        self._check(images, with_aux)
        endpoints: Endpoints = {}
        x = self._stem(images.astype(self.dtype), endpoints, train)
        # Inception modules, with the auxiliary head on 6e.
        for name, make in MODULES.items():
            x = self._module(make, name)(x, train)
            x = self.record(endpoints, name, x)
            if name == '6e' and with_aux:
                head = AuxiliaryHead(self.num_classes, self.stem, self.dtype, name='AuxLogits')
                aux = head(x, train)
                if train:
                    endpoints['aux'] = (aux,)
        # Classifier.
        x = nn.Dropout(self.dropout)(global_avg_pool(x), deterministic=not train)
        x = self.record(endpoints, 'features', x)
        init = {'kernel_init': truncated_normal(0.1), 'dtype': self.dtype}
        logits = Dense(self.num_classes, **init, output_dtype=jnp.float32, name='fc')
        return logits(x), endpoints

    def _module(self, make: Any, name: str) -> nn.Module:
        """Makes a module of `MODULES`, recomputed in the backward pass with `remat`."""
        # `nn.remat` takes a class, so unpack the class from the partial.
        if self.remat:
            cls, *args = (make.func, *make.args) if isinstance(make, partial) else (make,)
            make = partial(nn.remat(cls, static_argnums=(2,)), *args)
        return make(dtype=self.dtype, name=f'Mixed_{name}')

    def _stem(self, x: jax.Array, endpoints: Endpoints, train: bool) -> jax.Array:
        """Applies stages 1 and 2."""
        unit = partial(ConvUnit, dtype=self.dtype)
        if self.stem == 'small':
            x = unit(192, 3, padding=1, name='Conv2d_4a_3x3')(x, train)
            return self.record(endpoints, 'stage2', x)
        # Stage 1.
        x = unit(32, 3, strides=2, name='Conv2d_1a_3x3')(x, train)
        x = unit(32, 3, name='Conv2d_2a_3x3')(x, train)
        x = unit(64, 3, padding=1, name='Conv2d_2b_3x3')(x, train)
        x = self.record(endpoints, 'stage1', max_pool(x, 3, 2))
        # Stage 2.
        x = unit(80, 1, name='Conv2d_3b_1x1')(x, train)
        x = unit(192, 3, name='Conv2d_4a_3x3')(x, train)
        return self.record(endpoints, 'stage2', max_pool(x, 3, 2))

    def _check(self, images: jax.Array, with_aux: bool) -> None:
        """Raises UserError if the images are too small for the model or its auxiliary head."""
        small = self.stem == 'small'
        if with_aux:
            hint = 'aux_heads=False trains on smaller images'
            return self.check_images(images, min_size=23 if small else 299, hint=hint)
        hint = '' if small else "stem='small' takes smaller images"
        return self.check_images(images, min_size=7 if small else 75, hint=hint)
