"""Vision Transformer (Dosovitskiy et al. 2020), and its variants DeiT III, DINOv2, CLIP, SigLIP."""

from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.core.errors import UserError
from vision.models.base import Endpoints, ImageModel
from vision.models.layers import (
    Conv,
    Dense,
    Initializer,
    before_sum,
    fan_in_uniform,
    glorot_uniform,
    normal,
)
from vision.models.positions import Resize, resize_positions, sincos_positions
from vision.models.transformer import Attention, DropPath, LayerNorm, LayerScale, Mlp, attend


class Initialisation(NamedTuple):
    """Initialisers of the kernels, of the MLP's biases, and of the tokens."""

    patch: Initializer
    qkv: Initializer
    dense: Initializer
    head: Initializer
    mlp_bias: Initializer
    token: Initializer


_zeros, _tiny = nn.initializers.zeros, normal(1e-6)
_normal = normal(0.02)  # torch's trunc_normal_ truncates it at ±2, which is 100 σ
INITIALISATIONS: dict[str, Initialisation] = {
    # As in the authors' JAX code. Queries, keys and values have separate matrices there, so the
    # bound of Glorot's initialisation is that of a single matrix. The head starts at 0.
    'jax': Initialisation(
        patch=nn.initializers.lecun_normal(),
        qkv=nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform'),
        dense=glorot_uniform,
        head=_zeros,
        mlp_bias=_tiny,
        token=_zeros,
    ),
    # As in DINOv2 and timm: N(0, 0.02), and torch's initialisation of convolutions for the patch
    # embedding.
    'torch': Initialisation(
        patch=fan_in_uniform,
        qkv=_normal,
        dense=_normal,
        head=_normal,
        mlp_bias=_zeros,
        token=_tiny,
    ),
}
# DeiT and DeiT III draw the class token like the position embeddings.
INITIALISATIONS['deit'] = INITIALISATIONS['torch']._replace(token=_normal)
WeightInit = Literal['jax', 'torch', 'deit']


class Block(nn.Module):
    """Encoder block with a norm before each branch (section 3.1, equations 2 and 3).

    Attributes:
      heads: number of attention heads.
      epsilon, activation, layer_scale, weight_init, dropout: see `VisionTransformer`.
      drop_path: probability that an image skips a branch in training.
    """

    heads: int
    epsilon: float = 1e-6
    activation: str = 'gelu'
    layer_scale: float | None = None
    weight_init: WeightInit = 'jax'
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps tokens [B, N, D] to [B, N, D]."""
        init, width = INITIALISATIONS[self.weight_init], x.shape[-1]
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        # Attention.
        y = norm(name='norm1')(x)
        y = Attention(self.heads, init.qkv, init.dense, self.dtype, name='attn')(y)
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        x = x + self._branch(y, 1, train)
        # MLP.
        y = norm(name='norm2')(x)
        mlp = partial(Mlp, 4 * width, self.activation, init.dense, init.mlp_bias)
        y = mlp(self.dropout, self.dtype, name='mlp')(y, train)
        return x + self._branch(y, 2, train)

    def _branch(self, y: jax.Array, number: int, train: bool) -> jax.Array:
        """Applies LayerScale and stochastic depth to a branch."""
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, self.dtype, name=f'ls{number}')(y)
        return DropPath(self.drop_path)(y, train)


class AttentionPool(nn.Module):
    """Multi-head attention pooling of SigLIP (Zhai et al. 2022, Scaling Vision Transformers).

    A learned query attends to all tokens, and an MLP follows.
    """

    heads: int
    epsilon: float
    activation: str
    weight_init: WeightInit
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] to [B, D]."""
        init, (batch, length, width) = INITIALISATIONS[self.weight_init], x.shape
        dense = partial(Dense, dtype=self.dtype)
        split = self.heads, width // self.heads
        # The learned query is the same for all images.
        latent = self.param('latent', glorot_uniform, (1, 1, width), jnp.float32)
        query = dense(width, kernel_init=init.dense, name='q')(latent).reshape(1, 1, *split)
        query = jnp.broadcast_to(query, (batch, *query.shape[1:]))
        keys = dense(2 * width, kernel_init=init.qkv, name='kv')(x)
        keys = keys.reshape(batch, length, 2, *split)
        x = attend(query, keys[:, :, 0], keys[:, :, 1]).reshape(batch, width)
        x = dense(width, kernel_init=init.dense, name='proj')(x)
        y = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
        mlp = Mlp(
            4 * width, self.activation, init.dense, init.mlp_bias, 0.0, self.dtype, name='mlp'
        )
        return x + mlp(y, False)


class VisionTransformer(ImageModel):
    """ViT: Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, section 3.1, table 1.

    Images are cut into patches, each patch becomes a token, and the tokens pass through a
    transformer. `features`, the input of the classifier, is:

    - ViT, DeiT III (Touvron et al. 2022), DINOv2 (Oquab et al. 2023): the class token after the
      last norm. Registers (Darcet et al. 2023) are additional tokens, which are discarded.
    - CLIP (Radford et al. 2021): the same, before the projection to the space shared with texts.
    - SigLIP (Zhai et al. 2023): attention pooling over all tokens, without a class token.

    DINOv2, CLIP and SigLIP are published without a classifier; here they have one on `features`.

    | variant | width D | depth | heads | parameters (patch)                          |
    |---------|---------|-------|-------|---------------------------------------------|
    | Ti      | 192     | 12    | 3     | 5,717,416 (16)                              |
    | S       | 384     | 12    | 6     | 22,050,664 (16)                             |
    | B       | 768     | 12    | 12    | 86,567,656 (16), 88,224,232 (32)            |
    | L       | 1024    | 24    | 16    | 304,326,632 (16)                            |

    | endpoint | shape (16)   |                                                     |
    |----------|--------------|-----------------------------------------------------|
    | input    | 224, 224, 3  |                                                     |
    | stem     | 14, 14, D    | patch embedding: 16x16 stride 16                    |
    | block0 … | 14, 14, D    | patches' tokens after each block                    |
    | tokens   | 14, 14, D    | patches' tokens after the last norm                 |
    | features | D            |                                                     |
    | logits   | K            |                                                     |

    With the class token, `tokens` and the map of the last block have no effect on the logits and no
    gradient. Grad-CAM then uses the map of the block before the last.

    The sides of images are multiples of `patch`. The position embeddings have the size of the
    images at initialisation, and are resized for images of another size.

    Attributes:
      patch: side of a patch in pixels. Use 4 for images of 28 and 32 px.
      width, depth, heads: see the table.
      pool: source of `features`: the class 'token', 'map' (attention pooling), or the 'mean' over
        the patches (Beyer et al. 2022, Better plain ViT baselines for ImageNet-1k).
      positions: 'learned' position embeddings, or fixed sines and cosines (ibid.).
      registers: number of register tokens.
      class_position: whether the class token has a position embedding.
      pre_norm: whether a norm precedes the first block, and the patch embedding has no bias (CLIP).
      layer_scale: initial factor of the residual branches; None for no LayerScale.
      activation: activation of the MLP: exact 'gelu', 'gelu_tanh', or 'quick_gelu' (OpenAI's CLIP).
      epsilon: epsilon of the norms.
      resize: method of resizing position embeddings; see `vision.models.positions`.
      weight_init: 'jax' as in the authors' code, 'torch' as in DINOv2 and timm, or 'deit'.
      dropout: rate after the position embeddings and each dense layer, as in appendix B.1.
      drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
      uniform_drop_path: whether all blocks have the rate `drop_path`, as in DeiT III.
      resolution: side of the published model's images.
      remat: whether to recompute each block in the backward pass, to save memory.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    pool: Literal['token', 'map', 'mean'] = 'token'
    positions: Literal['learned', 'sincos2d'] = 'learned'
    registers: int = 0
    class_position: bool = True
    pre_norm: bool = False
    layer_scale: float | None = None
    activation: Literal['gelu', 'gelu_tanh', 'quick_gelu'] = 'gelu'
    epsilon: float = 1e-6
    resize: Resize = 'timm'
    weight_init: WeightInit = 'jax'
    dropout: float = 0.0
    drop_path: float = 0.0
    uniform_drop_path: bool = False
    resolution: int = 224
    remat: bool = False

    default_classes: ClassVar = 1000

    @property
    def input_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        """(H, W, C) of the published model."""
        return self.resolution, self.resolution, 3

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, Endpoints]:
        """Returns (logits [B, K], endpoints) for images whose sides are multiples of `patch`."""
        self._check(images)
        init = INITIALISATIONS[self.weight_init]
        endpoints: Endpoints = {}
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        # Embed the patches, add positions, and prepend the class token and the registers.
        patches = Conv(
            self.width,
            self.patch,
            self.patch,
            use_bias=not self.pre_norm,
            kernel_init=init.patch,
            dtype=self.dtype,
            name='patch_embed',
        )(images)
        patches = self.record(endpoints, 'stem', patches)
        x, prefix = self._tokens(patches)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        if self.pre_norm:
            x = norm(name='norm_pre')(x)
        # Blocks. The map of the last block is an input of the pooling, unless that reads the token.
        cls = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(self.depth):
            share = 1.0 if self.uniform_drop_path else i / max(self.depth - 1, 1)
            drop_path = self.drop_path * share
            x = cls(**self._shared(), drop_path=drop_path, name=f'blocks_{i}')(x, train)
            grid = x[:, prefix:].reshape(patches.shape)
            if i + 1 < self.depth or self.pool != 'token':
                grid = self.record(endpoints, f'block{i}', grid)
                x = jnp.concatenate([x[:, :prefix], grid.reshape(x[:, prefix:].shape)], axis=1)
            else:
                endpoints[f'block{i}'] = grid
        x = norm(name='norm')(x)
        endpoints['tokens'] = x[:, prefix:].reshape(patches.shape)
        # Pooling and classifier.
        if self.pool == 'map':
            pool = (self.heads, self.epsilon, self.activation, self.weight_init, self.dtype)
            x = AttentionPool(*pool, name='attn_pool')(x[:, prefix:])
        elif self.pool == 'mean':
            x = before_sum(x[:, prefix:]).mean(axis=1)
        else:
            x = x[:, 0]
        x = self.record(endpoints, 'features', x)
        types = {'dtype': self.dtype, 'output_dtype': jnp.float32}
        return Dense(self.num_classes, kernel_init=init.head, **types, name='head')(x), endpoints

    def _tokens(self, patches: jax.Array) -> tuple[jax.Array, int]:
        """Returns the tokens [B, N, D] with positions, and the number that precede the patches."""
        batch, rows, columns, width = patches.shape
        init = INITIALISATIONS[self.weight_init]
        if self.positions == 'sincos2d':
            positions = jnp.asarray(sincos_positions(rows, columns, width))
        else:
            # The parameter has the grid of the images at initialisation.
            shape: tuple[int, ...] = rows, columns, width
            if self.has_variable('params', 'pos_embed'):
                shape = jnp.shape(self.get_variable('params', 'pos_embed'))
            positions = self.param('pos_embed', normal(0.02), shape, jnp.float32)
            positions = resize_positions(positions, (rows, columns), self.resize)
        x = (patches + positions.astype(self.dtype)).reshape(batch, -1, width)
        # Prepend the class token and the registers.
        before = []
        if self.pool == 'token':
            token = self.param('cls_token', init.token, (1, 1, width), jnp.float32)
            if self.class_position:
                token = token + self.param('cls_position', normal(0.02), (1, 1, width), jnp.float32)
            before.append(token)
        if self.registers:
            registers = 1, self.registers, width
            before.append(self.param('reg_token', init.token, registers, jnp.float32))
        if not before:
            return x, 0
        first = jnp.concatenate(before, axis=1).astype(self.dtype)
        repeated = jnp.broadcast_to(first, (batch, *first.shape[1:]))
        return jnp.concatenate([repeated, x], axis=1), first.shape[1]

    def _shared(self) -> dict[str, Any]:
        """Returns the arguments that all blocks share."""
        names = ('heads', 'epsilon', 'activation', 'layer_scale', 'weight_init', 'dropout', 'dtype')
        return {name: getattr(self, name) for name in names}

    def _check(self, images: jax.Array) -> None:
        for name in ('patch', 'width', 'depth', 'heads', 'resolution'):
            if getattr(self, name) < 1:
                raise UserError(
                    f'VisionTransformer: {name}={getattr(self, name)} must be 1 or more'
                )
        if self.width % self.heads:
            raise UserError(
                f'VisionTransformer: heads={self.heads} does not divide width={self.width}'
            )
        if self.positions == 'sincos2d' and (self.width % 4 or self.width < 8):
            raise UserError(
                f"VisionTransformer: positions='sincos2d' needs a width of 8, 12, 16, …, "
                f'not {self.width}'
            )
        self.check_images(images)
        height, width = images.shape[1:3]
        if height % self.patch or width % self.patch or not height or not width:
            raise UserError(
                f'VisionTransformer takes images whose sides are multiples of patch={self.patch}, '
                f'not {height}x{width}'
            )
