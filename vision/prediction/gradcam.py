"""Grad-CAM heat maps: the image regions that support a class.

Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra 2017, "Grad-CAM: Visual explanations from deep
networks via gradient-based localization", section 3. Each feature map of a stage is weighted by the
mean gradient of the class's logit with respect to that map. The heat map is the ReLU of their sum.

Grad-CAM localises best in models that end with global average pooling (ResNet, GoogLeNet,
Inception). In models with fully connected layers (LeNet, AlexNet, VGG) a feature map may affect the
logit at some positions only. The mean over positions loses this information, so the heat map also
marks other positions with the same pattern.
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
    """The heat maps of an image's most probable classes.

    Attributes:
      index: the image's index in its source.
      image: the model input, uint8 [H, W, C].
      classes: int32 [k], the most probable first.
      probabilities: float32 [k].
      maps: one heat map for each class, float32 [k, H, W] in 0 … 1.
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
    """Computes Grad-CAM maps of several classes for each image.

    Args:
      model: a model of `vision.models`, with or without folded batch normalisation.
      variables: the model's 'params' and 'batch_stats'.
      images: float32 [B, H, W, C], normalised.
      classes: int32 [B, k]. A negative value −j stands for the j-th most probable class.
      stage: the endpoint whose feature maps [B, h, w, D] are weighted. By default the last endpoint
        with more than one position.

    Returns:
      Maps float32 [B, k, h, w], non-negative and not normalised, and logits float32 [B, K].

    Raises:
      UserError: the stage does not exist, or has no positions.
    """
    # Each stage adds a perturbation of zeros to its output. The gradient with respect to that
    # perturbation is the gradient with respect to the stage's feature maps.
    path, zeros = _perturbations(model, variables, images, stage)

    def head(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        perturbed = unflatten_dict({**zeros, path: perturbation})
        logits, endpoints = model.apply(
            {**variables, 'perturbations': perturbed}, images, train=False
        )
        return logits, endpoints[path[-1]]

    logits, pull_back, activation = jax.vjp(head, zeros[path], has_aux=True)
    # Replace each negative value −j by the j-th most probable class.
    likeliest = jnp.argsort(-logits, axis=-1, stable=True)
    ranks = jnp.clip(-classes - 1, 0)
    classes = jnp.where(classes < 0, jnp.take_along_axis(likeliest, ranks, axis=-1), classes)

    def explain(one: jax.Array) -> jax.Array:
        # Equations 1 and 2 of the paper, for one class of each image.
        (gradient,) = pull_back(jax.nn.one_hot(one, logits.shape[-1], dtype=logits.dtype))
        weights = gradient.astype(jnp.float32).mean(axis=(1, 2))
        return jax.nn.relu(jnp.einsum('bhwd,bd->bhw', activation.astype(jnp.float32), weights))

    return jax.vmap(explain, in_axes=1, out_axes=1)(classes), logits


def enlarge(maps: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes maps [B, k, h, w] to [B, k, height, width], bilinearly, each with maximum 1."""
    maps = jax.image.resize(maps, (*maps.shape[:2], height, width), 'bilinear')
    # A map of zeros is not scaled.
    highest = maps.max(axis=(2, 3), keepdims=True)
    return maps / jnp.where(highest > 0, highest, 1)


def _perturbations(
    model: Any, variables: Mapping[str, Any], images: jax.Array, stage: str | None
) -> tuple[tuple[str, ...], dict[tuple[str, ...], jax.Array]]:
    """Returns the stage's path in the collection 'perturbations', and zeros for the collection."""
    order: list[str] = []

    def trace(images: jax.Array) -> Any:
        (_, endpoints), created = model.apply(
            variables, images, train=False, mutable=['perturbations']
        )
        order.extend(endpoints)  # eval_shape would return them sorted by name
        return created

    # Find the stages that have positions, without computing anything.
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
