"""Grad-CAM: where in an image the evidence for a class lies.

Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra 2017, "Grad-CAM: Visual explanations from deep
networks via gradient-based localization", section 3: the maps of a stage, each weighted by the
mean gradient of the class's logit with respect to it, summed, and what is negative cut off.

It is sharpest for models that average over positions at their end (ResNet, GoogLeNet, Inception).
Where fully connected layers read each position by itself (LeNet, AlexNet, VGG), the mean forgets at
which of them a map counted, and the same pattern elsewhere is lit as well.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vision.core.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why an image was classified as it was.

    Attributes:
      index: the image's, in the order in which they were given.
      image: uint8 [H, W, C], what the model was fed.
      classes: int32 [k], the likeliest first.
      probabilities: float32 [k].
      maps: float32 [k, H, W] in 0 … 1, where the evidence for each class lies.
    """

    index: int
    image: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    maps: np.ndarray


def grad_cam(
    model: Any,
    variables: Mapping[str, Any],
    images: jax.Array,
    classes: jax.Array,
    stage: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Explains classes of images.

    Args:
      model: as `vision.models` makes them, or with its batch normalisation folded.
      variables: its 'params' and 'batch_stats'.
      images: float32 [B, H, W, C], normalised.
      classes: int32 [B, k]; where negative, −j stands for the j-th likeliest class.
      stage: the endpoint whose maps are weighted, [B, h, w, D]; by default the last that has more
        than one position.

    Returns:
      Maps float32 [B, k, h, w], at least 0 and of no particular scale; logits float32 [B, K].

    Raises:
      UserError: no such stage, or one without positions.
    """
    path, zeros = _perturbations(model, variables, images, stage)

    def head(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        perturbed = unflatten_dict({**zeros, path: perturbation})
        logits, endpoints = model.apply(
            {**variables, 'perturbations': perturbed}, images, train=False
        )
        return logits, endpoints[path[-1]]

    logits, pull_back, activation = jax.vjp(head, zeros[path], has_aux=True)
    likeliest = jnp.argsort(-logits, axis=-1, stable=True)
    ranks = jnp.clip(-classes - 1, 0)
    classes = jnp.where(classes < 0, jnp.take_along_axis(likeliest, ranks, axis=-1), classes)

    def explain(one: jax.Array) -> jax.Array:
        (gradient,) = pull_back(jax.nn.one_hot(one, logits.shape[-1], dtype=logits.dtype))
        weights = gradient.astype(jnp.float32).mean(axis=(1, 2))
        return jax.nn.relu(jnp.einsum('bhwd,bd->bhw', activation.astype(jnp.float32), weights))

    return jax.vmap(explain, in_axes=1, out_axes=1)(classes), logits


def enlarge(maps: jax.Array, height: int, width: int) -> jax.Array:
    """Maps [B, k, h, w] → [B, k, height, width], bilinear, each with maximum 1 (or 0 throughout)."""
    maps = jax.image.resize(maps, (*maps.shape[:2], height, width), 'bilinear')
    highest = maps.max(axis=(2, 3), keepdims=True)
    return maps / jnp.where(highest > 0, highest, 1)


def _perturbations(
    model: Any, variables: Mapping[str, Any], images: jax.Array, stage: str | None
) -> tuple[tuple[str, ...], dict[tuple[str, ...], jax.Array]]:
    """The stage's path in the collection 'perturbations', and zeros for all that is in there."""
    order: list[str] = []

    def trace(images: jax.Array) -> Any:
        (_, endpoints), created = model.apply(
            variables, images, train=False, mutable=['perturbations']
        )
        order.extend(endpoints)  # jit would sort them
        return created

    shapes = flatten_dict(jax.eval_shape(trace, images).get('perturbations', {}))
    paths = {path[-1]: path for path in shapes}
    spatial = [n for n in order if n in paths and _positions(shapes[paths[n]].shape) > 1]
    if not spatial:
        raise UserError('the model records no stage with positions, so there is nothing to explain')
    if stage is not None and stage not in spatial:
        raise unknown('stage with positions', stage, spatial)
    zeros = {path: jnp.zeros(x.shape, x.dtype) for path, x in shapes.items()}
    return paths[stage or spatial[-1]], zeros


def _positions(shape: tuple[int, ...]) -> int:
    return shape[1] * shape[2] if len(shape) == 4 else 0
