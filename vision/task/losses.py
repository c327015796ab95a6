"""Losses per example: functions of logits [B, K] and targets [B, K] that return float32 [B].

Targets are class probabilities (one-hot, smoothed or mixed), multiplied by class weights if there
are any. Each loss is linear in the targets, so the loss of a mixed target is the mix of the losses.
The sigmoid cross-entropy is an exception: it is linear only up to a constant, and not linear with a
threshold. It takes no class weights.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from vision.core.config_keys import Range, check_arguments, declared, find, own_arguments
from vision.core.errors import UserError


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Softmax cross-entropy, −Σ_k target_k · log softmax(logits)_k, in float32."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    threshold: Annotated[float | None, Range(low=0, below=1)] = None,
    average: bool = False,
) -> jax.Array:
    """Binary cross-entropy of each class, summed over the classes, in float32.

    −Σ_k target_k · log σ(logit_k) + (1 − target_k) · log(1 − σ(logit_k)). Wightman et al. 2021,
    "ResNet strikes back", section 2.1, average over the classes and set the targets of all classes
    of a mixed image to 1. The paper's code in timm does so only for targets above a threshold of
    0.2; DeiT III (Touvron et al. 2022) has a threshold of 0.

    Args:
      logits: [B, K].
      targets: [B, K].
      threshold: after label smoothing, targets above the threshold become 1 and all others 0; None
        leaves the targets unchanged.
      average: whether to return the mean over the classes instead of the sum.
    """
    logits = logits.astype(jnp.float32)
    if threshold is not None:
        targets = (targets > threshold).astype(jnp.float32)
    reduce = jnp.mean if average else jnp.sum
    return -reduce(
        targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits), axis=-1
    )


def focal(
    logits: jax.Array, targets: jax.Array, gamma: Annotated[float, Range(low=0)] = 2.0
) -> jax.Array:
    """Focal loss (Lin et al. 2017, eq. 4), which down-weights well-classified examples; in float32.

    −Σ_k target_k · (1 − p_k)^γ · log p_k with p = softmax(logits); γ = 0 gives
    `softmax_cross_entropy`. The paper's α is `loss.class_weights`.

    Args:
      logits: [B, K].
      targets: [B, K].
      gamma: exponent γ.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # Compute 1 − p from log p, and clip it above 0, so that the gradient is finite where p is 1.
    others = jnp.clip(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
    return -jnp.sum(targets * others**gamma * log_p, axis=-1)


def lenet_mse(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """LeNet-5's mean squared error (LeCun et al. 1998, eq. 8): distance to the correct bitmap.

    Args:
      logits: float32 [B, 10], negative distances −y.
      targets: float32 [B, 10], one-hot or mixed.

    Returns:
      float32 [B]: y of the correct class, or the mean of y weighted by the targets.
    """
    return -(targets * logits).sum(-1)


def lenet_discriminative(
    logits: jax.Array, targets: jax.Array, j: Annotated[float, Range(above=0)] = 1.0
) -> jax.Array:
    """LeNet-5's discriminative loss (LeCun et al. 1998, eq. 9).

    The loss is y_correct + log(exp(−j) + Σ exp(−y) over all classes). It also penalises wrong
    classes with a small distance y. The constant j > 0 acts as the distance of a 'rubbish' class:
    classes with distances much larger than j are not pushed further away. The paper gives no value
    of j.

    Args:
      logits: float32 [B, 10], negative distances −y.
      targets: float32 [B, 10], one-hot or mixed.
      j: distance of the rubbish class.

    Returns:
      float32 [B], never negative for one-hot targets.
    """
    # The sum includes exp(−j) for the rubbish class; `logits` are −y.
    rubbish = jnp.full((*logits.shape[:-1], 1), -j, logits.dtype)
    competing = jax.nn.logsumexp(jnp.concatenate([logits, rubbish], -1), axis=-1)
    return lenet_mse(logits, targets) + targets.sum(-1) * competing


LOSSES: dict[str, Callable[..., jax.Array]] = {
    'softmax_cross_entropy': softmax_cross_entropy,
    'sigmoid_cross_entropy': sigmoid_cross_entropy,
    'focal': focal,
    'lenet_mse': lenet_mse,
    'lenet_discriminative': lenet_discriminative,
}


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The loss of `config.loss` with its label smoothing and class weights.

    Attributes:
      function: per-example loss, logits [B, K] and targets [B, K] → [B].
      label_smoothing: weight ε of the uniform distribution in the targets (Szegedy et al. 2015b,
        section 7).
      aux_weight: weight of each auxiliary head's loss.
      class_weights: one weight per class; () for none.
    """

    function: Callable[[jax.Array, jax.Array], jax.Array]
    label_smoothing: float = 0.0
    aux_weight: float = 0.3
    class_weights: tuple[float, ...] = ()

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss of each example, float32 [B], for targets [B, K]."""
        # Smooth first, so that class weights also apply to the smoothed targets.
        targets = smooth_labels(targets, self.label_smoothing)
        if self.class_weights:
            targets = targets * jnp.asarray(self.class_weights, jnp.float32)
        return self.function(logits, targets)

    def total_weight(self, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the sum of the examples' class weights, which normalises the sum of their losses.

        An example's weight is that of its class, or the mean over its targets; masked examples have
        weight 0. For class indices the result is the mean of PyTorch's `CrossEntropyLoss(weight=…,
        label_smoothing=…)`. For mixed targets PyTorch divides by the number of examples instead, so
        that a one-hot target would differ from its class index. If all weights are 0, returns 1.

        Args:
          targets: float32 [B, K], not smoothed.
          mask: float32 [B].
        """
        weights = mask
        if self.class_weights:
            class_weights = jnp.asarray(self.class_weights, jnp.float32)
            weights = weights * jnp.sum(targets * class_weights, axis=-1)
        # Avoid 0 / 0 for a batch of padding only.
        total = jnp.sum(weights)
        return jnp.where(total > 0, total, 1.0)


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
    """Mixes targets [B, K] with the uniform distribution (Szegedy et al. 2015b, section 7)."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def make_criterion(config: Mapping[str, Any], num_classes: int) -> Criterion:
    """Builds the loss that `config.loss` names, one of `LOSSES` or 'package.module:function'.

    Args:
      config: `config.loss`.
      num_classes: K.

    Raises:
      UserError: an unknown loss or argument, a function with a wrong signature or result, or class
        weights that do not fit K classes.
    """
    name = config['name']
    function = find('loss.name', name, LOSSES)
    given = own_arguments('loss', config)
    own = list(inspect.signature(function).parameters)[2:]
    check_arguments(f'loss {name!r}', function, [*own, *declared('loss')], given)
    # Bind the arguments of the loss; smoothing and class weights are applied by `Criterion`.
    criterion = Criterion(
        functools.partial(function, **given) if given else function,
        config['label_smoothing'],
        config['aux_weight'],
        tuple(config['class_weights']),
    )
    # Trace a user-defined loss once, to check its arguments and its result.
    _check_weights(name, criterion.class_weights, num_classes)
    one = jax.ShapeDtypeStruct((1, num_classes), jnp.float32)
    try:
        shape = jax.eval_shape(criterion.function, one, one).shape
    except (TypeError, AttributeError) as e:
        raise UserError(f'loss {name!r} cannot be called: {e}') from None
    if shape != (1,):
        raise UserError(
            f'loss {name!r} must return one value per example, [B], not {[*shape]} for B = 1'
        )
    return criterion


def _check_weights(name: str, weights: tuple, num_classes: int) -> None:
    """Raises UserError unless the class weights suit the loss and the number of classes."""
    if not weights:
        return
    if name == 'sigmoid_cross_entropy':  # its loss is not proportional to the target
        raise UserError("loss.class_weights: 'sigmoid_cross_entropy' supports no class weights")
    if len(weights) != num_classes:
        raise UserError(f'loss.class_weights has {len(weights)} values for {num_classes} classes')
    if not any(weights):
        raise UserError(f'loss.class_weights={weights} must be 0 or more, and not all 0')
