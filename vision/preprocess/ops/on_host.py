"""Application of ops to an image on the host, and their random numbers."""

from typing import Any

import numpy as np

from vision.data.order import hash64
from vision.preprocess import opstring
from vision.preprocess.ops import fused
from vision.preprocess.ops.registry import HOST, PER_OP, Rng, find


def draw(seed: int, epochs: np.ndarray, ids: np.ndarray, num_ops: int) -> np.ndarray:
    """Draws the random numbers of an op string for a batch.

    Args:
      seed: seed of the run.
      epochs: int [B].
      ids: int [B].
      num_ops: number of ops in the op string.

    Returns:
      Numbers uniform in [0, 1), float64 [B, num_ops, PER_OP].
    """
    # Every number has its own hash, so no random state has to be kept.
    bits = hash64(
        seed,
        epochs[:, None, None],
        ids[:, None, None],
        np.arange(num_ops)[:, None],
        np.arange(PER_OP),
    )
    return (bits >> np.uint64(11)) * 2.0**-53


def apply(ops: tuple[opstring.Op, ...], image: Any, draws: Any, decoded: bool = False) -> Any:
    """Applies ops to one image on the host.

    `vision.preprocess.device.apply_ops` is its counterpart on the device.

    Args:
      ops: parsed ops.
      image: encoded bytes (a string scalar), or uint8 [H, W, C].
      draws: random numbers of the image from `draw`, float64 [len(ops), PER_OP].
      decoded: True if the image is already decoded; a leading `decode` is then skipped.

    Returns:
      uint8 [H', W', C'], or [V, H', W', C'] if the last op makes V views.
    """
    # Consecutive ops that can be fused are applied together.
    position = 0
    while position < len(ops):
        op, rest = ops[position], ops[position + 1 :]
        if op.name == 'decode' and decoded:
            position += 1
        elif rest and fused.can_fuse(op, rest[0]):
            rngs = _rng(op, draws, position), _rng(rest[0], draws, position + 1)
            image = fused.apply(op, rest[0], image, rngs)
            position += 2
        else:
            rng, form = _rng(op, draws, position), find(op.name).form(HOST)
            assert form is not None  # `parse` has checked it
            image = form(image, *([rng] if rng else []), *op.args, **op.kwargs)
            position += 1
    return image


def _rng(op: opstring.Op, draws: Any, position: int) -> Rng | None:
    """Returns the random numbers of the op at a position; None for an op without them."""
    return Rng(draws[position]) if find(op.name).draws() else None
