"""Losses, per example. Each takes logits [B, K] and targets [B, K] and returns float32 [B].

Targets are probabilities over the classes (one-hot, smoothed or mixed), times the class weights where
there are any. The loss of a mixed target is the mix of the losses: each is linear in the targets, or, as
the sigmoid's, linear but for a constant (and then takes no class weights).
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
    """−Σ_k target_k · log softmax(logits)_k, in float32."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Binary cross-entropy of each class by itself, summed over the classes, in float32.

    −Σ_k target_k · log σ(logit_k) + (1 − target_k) · log(1 − σ(logit_k)), as in Wightman et al. 2021,
    "ResNet strikes back", section 2.1 (which takes the mean over the classes).
    """
    logits = logits.astype(jnp.float32)
    return -jnp.sum(
        targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits), axis=-1
    )


def focal(
    logits: jax.Array, targets: jax.Array, gamma: Annotated[float, Range(low=0)] = 2.0
) -> jax.Array:
    """Cross-entropy that well-classified examples add little to (Lin et al. 2017, eq. 4), in float32.

    −Σ_k target_k · (1 − p_k)^γ · log p_k, p = softmax(logits); with γ = 0 it is `softmax_cross_entropy`.
    The paper's α is `loss.class_weights`.

    Args:
      logits: [B, K].
      targets: [B, K].
      gamma: the exponent γ.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # 1 − p as exp(log(1 − p)): its gradient is finite where p is 1.
    others = jnp.clip(-jnp.expm1(log_p), jnp.finfo(jnp.float32).tiny)
    return -jnp.sum(targets * others**gamma * log_p, axis=-1)


def lenet_mse(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """LeNet-5's (LeCun et al. 1998), eq. 8: the distance of the correct class's bitmap.

    Args:
      logits: float32 [B, 10], minus the distances y.
      targets: float32 [B, 10], one-hot or mixed.

    Returns:
      float32 [B]: y of the correct class, or the mean of y weighted by the targets.
    """
    return -(targets * logits).sum(-1)


def lenet_discriminative(
    logits: jax.Array, targets: jax.Array, j: Annotated[float, Range(above=0)] = 1.0
) -> jax.Array:
    """LeNet-5's (LeCun et al. 1998), eq. 9: the correct class's distance, and a penalty for each other class that is near.

    y_correct + log(exp(-j) + sum over classes of exp(-y)). The constant j > 0 is a 'rubbish'
    class: classes much further away than j are not pushed further. The paper gives no value.

    Args:
      logits: float32 [B, 10], minus the distances y.
      targets: float32 [B, 10], one-hot or mixed.
      j: the rubbish class's distance.

    Returns:
      float32 [B], never negative for one-hot targets.
    """
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
    """The loss that `config.loss` describes, with what is done to its targets.

    Attributes:
      function: per example: logits [B, K], targets [B, K] → [B].
      label_smoothing: ε: targets are mixed with the uniform distribution (Szegedy et al. 2015b, section 7).
      aux_weight: of each auxiliary head's loss.
      class_weights: one for each class; () for none.
    """

    function: Callable[[jax.Array, jax.Array], jax.Array]
    label_smoothing: float = 0.0
    aux_weight: float = 0.3
    class_weights: tuple[float, ...] = ()

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of each example, float32 [B], against the probabilities `targets` [B, K]."""
        targets = smooth_labels(targets, self.label_smoothing)
        if self.class_weights:
            targets = targets * jnp.asarray(self.class_weights, jnp.float32)
        return self.function(logits, targets)

    def total_weight(self, targets: jax.Array, mask: jax.Array) -> jax.Array:
        """The sum of the examples' class weights, by which the sum of their losses is divided.

        An example's weight is that of its class, or the mean over its targets; masked ones have none.
        That is the mean of torch's `CrossEntropyLoss(weight=…, label_smoothing=…)` for class indices.
        (For mixed targets torch divides by the number of examples, which would give a one-hot target
        another weight than its class index.) 1 where nothing counts.

        Args:
          targets: float32 [B, K], not smoothed.
          mask: float32 [B].
        """
        weights = mask
        if self.class_weights:
            class_weights = jnp.asarray(self.class_weights, jnp.float32)
            weights = weights * jnp.sum(targets * class_weights, axis=-1)
        total = jnp.sum(weights)
        return jnp.where(total > 0, total, 1.0)


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
    """Mixes targets [B, K] with the uniform distribution (Szegedy et al. 2015b, section 7)."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def make_criterion(config: Mapping[str, Any], num_classes: int) -> Criterion:
    """The loss that `config.loss` names, ours or a user's 'package.module:function', with its arguments.

    Args:
      config: `config.loss`.
      num_classes: K.

    Raises:
      UserError: an unknown loss or argument, a function that cannot be called, or class weights that do
        not fit K classes.
    """
    name = config['name']
    function = find('loss.name', name, LOSSES)
    given = own_arguments('loss', config)
    own = list(inspect.signature(function).parameters)[2:]
    check_arguments(f'loss {name!r}', function, [*own, *declared('loss')], given)
    criterion = Criterion(
        functools.partial(function, **given) if given else function,
        config['label_smoothing'],
        config['aux_weight'],
        tuple(config['class_weights']),
    )
    _check_weights(name, criterion.class_weights, num_classes)
    one = jax.ShapeDtypeStruct((1, num_classes), jnp.float32)
    try:
        shape = jax.eval_shape(criterion.function, one, one).shape
    except (TypeError, AttributeError) as e:
        raise UserError(f'loss {name!r} cannot be called: {e}') from None
    if shape != (1,):
        raise UserError(
            f'loss {name!r} must return [B], a value an example, not {[*shape]} for B = 1'
        )
    return criterion


def _check_weights(name: str, weights: tuple, num_classes: int) -> None:
    if not weights:
        return
    if name == 'sigmoid_cross_entropy':  # its loss is no multiple of the target
        raise UserError("loss.class_weights: 'sigmoid_cross_entropy' takes none")
    if len(weights) != num_classes:
        raise UserError(f'loss.class_weights has {len(weights)} values for {num_classes} classes')
    if not any(weights):
        raise UserError(f'loss.class_weights={weights} must be 0 or more, and not all 0')
