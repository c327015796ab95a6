"""Exact evaluation: every example counted once, whatever the batch size and the devices."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision.core import mesh as mesh_lib
from vision.preprocess.device import Batch, normalise

EvalStep = Callable[[Any, Batch], Batch]


def make_eval_step(model: nn.Module, config: ConfigDict, mesh: Mesh) -> EvalStep:
    """Builds the jitted `eval_step(variables, batch)`.

    It returns what is known of each example of the batch, on every device: `id` and `mask` as they
    came, `loss` (softmax cross-entropy) float32 [B], `predicted` int32 [B], and `rank` int32 [B],
    the number of classes that the model puts before the right one (of equal logits the lower index
    goes first, as in argmax; a logit that is not a number goes before all others).
    """

    def eval_step(variables: Any, batch: Batch) -> Batch:
        variables = mesh_lib.constrain_state(variables, mesh, 'data')  # of 'fsdp', too
        images = normalise(batch['image'], config.preprocess.mean, config.preprocess.std)
        logits, _ = model.apply(variables, images, train=False)
        label = batch['label'][:, None]
        right = jnp.take_along_axis(logits, label, axis=-1)
        ahead = ~(logits <= right) | ((logits == right) & (jnp.arange(logits.shape[-1]) < label))
        return {
            'id': batch['id'],
            'mask': batch['mask'],
            'loss': jax.nn.logsumexp(logits, axis=-1) - right[:, 0],
            'predicted': jnp.argmax(logits, axis=-1),
            'rank': jnp.sum(ahead, axis=-1),
        }

    replicated = mesh_lib.replicated(mesh)
    return jax.jit(
        eval_step,
        in_shardings=(None, mesh_lib.split_batch(mesh)),
        out_shardings=replicated,
    )


def evaluate(
    eval_step: EvalStep,
    variables: Any,
    batches: Iterable[Batch],
    num_examples: int,
    num_classes: int,
    skipped: Callable[[], int] = lambda: 0,
) -> dict[str, Any]:
    """Evaluates one split.

    Args:
      eval_step: as `make_eval_step` built it.
      variables: params and batch_stats, on the mesh.
      batches: every example of the split once, padding with mask 0.
      num_examples: of the split.
      num_classes: K.
      skipped: how many examples were left out on purpose; asked when `batches` is through.

    Returns:
      `top1` and `top5` (fractions of 1; `top5` None under 5 classes), `loss` (mean over the
      examples, summed in float64) and `count`.

    Raises:
      RuntimeError: an example was left out or counted twice.
    """
    # The device runs ahead of the host: nothing is read before the last batch is on its way.
    results = jax.device_get([eval_step(variables, batch) for batch in batches])
    ids, loss, rank = (
        np.concatenate([r[key][r['mask'] > 0] for r in results]) for key in ('id', 'loss', 'rank')
    )
    check_count(ids, num_examples, skipped())
    return {
        'top1': int((rank < 1).sum()) / len(ids),
        'top5': int((rank < 5).sum()) / len(ids) if num_classes >= 5 else None,
        'loss': math.fsum(loss.astype(np.float64)) / len(ids),
        'count': len(ids),
    }


def check_count(ids: np.ndarray, num_examples: int, skipped: int = 0) -> None:
    """Raises RuntimeError unless `ids` holds each of 0 … num_examples − 1 exactly once.

    Args:
      ids: int [N], of the examples that were counted.
      num_examples: of the split.
      skipped: how many of them were left out on purpose.
    """
    times = np.bincount(ids, minlength=num_examples)
    missing, twice = int((times == 0).sum()) - skipped, int((times > 1).sum())
    if len(times) != num_examples or missing or twice:
        raise RuntimeError(
            f'evaluation counted {len(ids)} examples of {num_examples} ({skipped} skipped): '
            f'{missing} were left out, {twice} came more than once'
        )
    if not len(ids):
        raise RuntimeError('evaluation counted no example')
