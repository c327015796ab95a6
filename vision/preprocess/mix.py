"""Mixing the examples of a batch, on the device, inside the training step: mixup and CutMix.

Each example is mixed with its neighbour in the global batch, the last with the first; the labels
mix in the pixels' proportion. One draw serves the whole batch, as in both papers' own code.
"""

import jax
import jax.numpy as jnp


def mix(
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with another; where both kinds are asked for, a coin decides for the batch.

    Label smoothing comes after it.

    An example whose partner has mask 0 (its image could not be read) stays as it is.

    Args:
      images: float32 [B, H, W, C].
      targets: float32 [B, K], one-hot.
      mask: float32 [B].
      key: of this step.
      mixup: α of the Beta(α, α) that mixup's proportion is drawn from (Zhang et al. 2017,
        arXiv:1710.09412); 0 for none, but not of both.
      cutmix: likewise for CutMix (Yun et al. 2019, arXiv:1905.04899).

    Returns:
      Images [B, H, W, C] and targets [B, K].
    """
    coin, draw = jax.random.split(key)
    if mixup and cutmix:
        own, share = jax.lax.cond(
            jax.random.bernoulli(coin),
            lambda: _cutmix(draw, cutmix, images.shape),
            lambda: _mixup(draw, mixup, images.shape),
        )
    elif cutmix:
        own, share = _cutmix(draw, cutmix, images.shape)
    else:
        own, share = _mixup(draw, mixup, images.shape)
    there = jnp.roll(mask, 1) > 0
    mixed = own * images + (1 - own) * jnp.roll(images, 1, axis=0)
    mixed_targets = share * targets + (1 - share) * jnp.roll(targets, 1, axis=0)
    return (
        jnp.where(there[:, None, None, None], mixed, images),
        jnp.where(there[:, None], mixed_targets, targets),
    )


def _mixup(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The weight of each pixel of the example itself, [1, H, W, 1], and their mean."""
    share = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
    return jnp.full((1, *shape[1:3], 1), share), share


def _cutmix(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """As `_mixup`: 0 in a box of the image's aspect about a uniform centre, cut at the border."""
    key_share, key_y, key_x = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(key_share, alpha, alpha, dtype=jnp.float32))
    inside = []
    for size, place in zip(shape[1:3], (key_y, key_x), strict=True):
        centre = jax.random.randint(place, (), 0, size)
        half = jnp.floor(0.5 * side * size).astype(jnp.int32)
        pixels = jnp.arange(size)
        inside.append((pixels >= centre - half) & (pixels < centre + half))
    own = 1.0 - (inside[0][:, None] & inside[1][None, :]).astype(jnp.float32)
    return own[None, :, :, None], own.mean()
