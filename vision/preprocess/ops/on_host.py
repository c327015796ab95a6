"""Op strings on the host: the random numbers of their ops, and running them on an image."""

from typing import Any

import numpy as np

from vision.data.order import hash64
from vision.preprocess import opstring
from vision.preprocess.ops import fused
from vision.preprocess.ops.registry import HOST, PER_OP, Rng, find


def draw(seed: int, epochs: np.ndarray, ids: np.ndarray, num_ops: int) -> np.ndarray:
    """Draws what the ops of an op string need on the host.

    Args:
      seed: of the run.
      epochs: int [B].
      ids: int [B].
      num_ops: how many ops the string has.

    Returns:
      Uniform in [0, 1): float64 [B, num_ops, PER_OP].
    """
    bits = hash64(
        seed,
        epochs[:, None, None],
        ids[:, None, None],
        np.arange(num_ops)[:, None],
        np.arange(PER_OP),
    )
    return (bits >> np.uint64(11)) * 2.0**-53


def apply(ops: tuple[opstring.Op, ...], image: Any, draws: Any, decoded: bool = False) -> Any:
    """Runs ops on one image, on the host; `vision.preprocess.device.apply_ops` does on the device.

    Args:
      ops: as `parse` returns them.
      image: encoded bytes (a string scalar), or uint8 [H, W, C].
      draws: the image's random numbers (`draw`): float64 [len(ops), PER_OP].
      decoded: the image is what the leading `decode` would return.

    Returns:
      uint8 [H', W', C'], or [V, H', W', C'] where the last op makes views.
    """
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
            assert form is not None  # `parse` saw to it
            image = form(image, *([rng] if rng else []), *op.args, **op.kwargs)
            position += 1
    return image


def _rng(op: opstring.Op, draws: Any, position: int) -> Rng | None:
    return Rng(draws[position]) if find(op.name).draws() else None
