"""Step 2, preprocess: the ops that run on the host, in TensorFlow, by name.

An op is one function of one image: uint8 [H, W, C] in, uint8 out; `decode` takes bytes. One that
draws random numbers has a second parameter `rng`. The others come from the op string. To add an
op, write the function and add it to `OPS`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from vision.core.errors import UserError
from vision.preprocess import autoaugment, color, decode, fused, geometry, opstring, views, warp
from vision.preprocess.draws import Rng

OPS: dict[str, Callable[..., Any]] = {
    op.__name__: op
    for op in (
        decode.decode,
        geometry.resize, geometry.resize_small, geometry.scale_jitter, geometry.central_crop,
        geometry.random_crop, geometry.random_resized_crop, geometry.pad, geometry.flip_lr,
        geometry.flip_ud,
        warp.rotate, warp.zoom, warp.translate, warp.shear, warp.affine, warp.elastic,
        warp.cutout, warp.random_erasing,
        color.brightness, color.contrast, color.saturation, color.hue, color.grayscale, color.rgb,
        color.pca_noise,
        autoaugment.randaugment, autoaugment.autoaugment, autoaugment.trivialaugment_wide,
        views.ten_crop, views.multi_scale_crops, views.inception_crops,
    )
}  # fmt: skip


# Of one image they make several, [V, H, W, C].
VIEWS = ('ten_crop', 'multi_scale_crops', 'inception_crops')


def is_random(name: str) -> bool:
    """Whether an op draws random numbers."""
    return 'rng' in inspect.signature(OPS[name]).parameters


def parse(text: str) -> tuple[opstring.Op, ...]:
    """Reads and checks an op string.

    Raises:
      UserError: it is misspelt, an op is unknown, or an op's arguments do not fit.
    """
    ops = opstring.parse(text)
    for op in ops:
        random = op.name in OPS and is_random(op.name)
        opstring.check((op,), OPS, skip=2 if random else 1)
    for op in ops[:-1]:
        if op.name in VIEWS:
            raise UserError(f'{op} makes several views of an image: it must be the last op')
    return ops


def apply(ops: tuple[opstring.Op, ...], image: Any, draws: Any, decoded: bool = False) -> Any:
    """Runs ops on one image.

    Args:
      ops: as `parse` returns them.
      image: encoded bytes (a string scalar), or uint8 [H, W, C].
      draws: the image's random numbers (`draws.draw`): float64 [len(ops), PER_OP].
      decoded: the image is what the leading `decode` would return.

    Returns:
      uint8 [H', W', C'].
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
            rng = _rng(op, draws, position)
            image = OPS[op.name](image, *([rng] if rng else []), *op.args, **op.kwargs)
            position += 1
    return image


def _rng(op: opstring.Op, draws: Any, position: int) -> Rng | None:
    return Rng(draws[position]) if is_random(op.name) else None


def channels(ops: tuple[opstring.Op, ...]) -> int:
    """The channels of the decoded image, by the string's leading `decode`; 3 if there is none."""
    if not ops or ops[0].name != 'decode':
        return 3
    return opstring.arguments(ops[0], decode.decode)['channels']
