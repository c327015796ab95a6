"""What every model of the registry is: an image in, logits and endpoints out."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision.core.errors import UserError

Endpoints = dict[str, Any]


class ImageModel(nn.Module):
    """Base of the models: `apply(variables, images, train=...) -> (logits, endpoints)`.

    images are float32 [B, H, W, C]; logits float32 [B, num_classes]. `endpoints` has `features`
    [B, D] (what the last layer sees), each stage's activation by name, and in training `aux`, a
    tuple of auxiliary logits, where the model has such heads. `dtype` is what is computed in;
    parameters are float32.

    A subclass sets `input_shape` and `default_classes`, the paper's, for tables and checks.
    """

    num_classes: int = 1000
    dtype: Any = jnp.float32

    input_shape: ClassVar[tuple[int, int, int]] = (224, 224, 3)
    default_classes: ClassVar[int] = 1000

    def record(self, endpoints: Endpoints, name: str, x: jax.Array) -> jax.Array:
        """Puts a stage's activation among the endpoints; gradients with respect to it can be had."""
        endpoints[name] = self.perturb(name, x)
        return endpoints[name]

    def check_images(
        self,
        images: jax.Array,
        min_size: int = 1,
        exact_size: int | None = None,
        channels: int | None = None,
        hint: str = '',
    ) -> None:
        """Raises UserError unless the images are float [B, H, W, C] of a size the model can take."""
        if images.ndim != 4:
            raise UserError(f'{self._title} takes images [B, H, W, C], not shape {images.shape}')
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f'{self._title} takes normalised float images, not {images.dtype}')
        height, width, depth = images.shape[1:]
        hint = f': {hint}' if hint else ''
        if exact_size is not None and (height, width) != (exact_size, exact_size):
            raise UserError(
                f'{self._title} takes images of {exact_size}x{exact_size}, not {height}x{width}{hint}'
            )
        if min(height, width) < min_size:
            raise UserError(
                f'{self._title} takes images of {min_size}x{min_size} and larger, '
                f'not {height}x{width}{hint}'
            )
        if channels is not None and depth != channels:
            raise UserError(f'{self._title} takes images with channels = {channels}, not {depth}')
        if depth == 0:
            raise UserError(f'{self._title} takes images with channels, not shape {images.shape}')

    @property
    def _title(self) -> str:
        return type(self).__name__
