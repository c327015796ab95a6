"""Mixup and CutMix, applied to a batch on the device inside the training step.

Each example is mixed with the previous one in the global batch, the first with the last. The labels
are mixed in the proportion of the pixels. One random draw is used for the whole batch, as in the
published code of both papers.
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
    """Mixes each example with another by mixup or CutMix.

    If both are given, each batch uses one of the two, chosen at random. An example whose partner
    has mask 0 (because its image could not be read) is not changed. Label smoothing is applied
    afterwards.

    Args:
      images: float32 [B, H, W, C].
      targets: float32 [B, K], one-hot.
      mask: float32 [B].
      key: PRNG key of this step.
      mixup: α of the Beta(α, α) distribution of mixup's proportion (Zhang et al. 2017,
        arXiv:1710.09412); 0 for no mixup. At least one of `mixup` and `cutmix` must be above 0.
      cutmix: α of CutMix in the same way (Yun et al. 2019, arXiv:1905.04899).

    Returns:
      Images [B, H, W, C] and targets [B, K].
    """
    coin, draw = jax.random.split(key)
    # Draw the weight of each pixel, and the weight of the label.
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
    # Mix each row with the previous one, if that is valid.
    there = jnp.roll(mask, 1) > 0
    mixed = own * images + (1 - own) * jnp.roll(images, 1, axis=0)
    mixed_targets = share * targets + (1 - share) * jnp.roll(targets, 1, axis=0)
    # Keep rows whose partner is not valid.
    return (
        jnp.where(there[:, None, None, None], mixed, images),
        jnp.where(there[:, None], mixed_targets, targets),
    )


def _mixup(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Draws the weights of an example's own pixels, [1, H, W, 1]; returns them and their mean."""
    share = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
    return jnp.full((1, *shape[1:3], 1), share), share


def _cutmix(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Draws the weights and their mean for CutMix, in the form of `_mixup`.

    The weights are 0 in a box with the image's aspect ratio around a uniformly drawn centre; the
    box is cut off at the border.
    """
    key_share, key_y, key_x = jax.random.split(key, 3)
    # The box covers 1 − λ of the area, with λ from the Beta distribution: √(1 − λ) of each side.
    side = jnp.sqrt(1 - jax.random.beta(key_share, alpha, alpha, dtype=jnp.float32))
    # Mark the rows and columns inside the box.
    inside = []
    for size, place in zip(shape[1:3], (key_y, key_x), strict=True):
        centre = jax.random.randint(place, (), 0, size)
        half = jnp.floor(0.5 * side * size).astype(jnp.int32)
        pixels = jnp.arange(size)
        inside.append((pixels >= centre - half) & (pixels < centre + half))
    own = 1.0 - (inside[0][:, None] & inside[1][None, :]).astype(jnp.float32)
    return own[None, :, :, None], own.mean()
