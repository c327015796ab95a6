"""The papers' test protocols: how an image is cropped for testing and how the views are averaged.

`--eval.protocol=NAME` or `NAME(arguments)` selects a protocol, in the grammar of op strings. A
protocol is one or several passes over the data, each defined by an op string. All views of an image
in a pass go through the model in one batch. Softmax probabilities are averaged over views and
passes with equal weights, as in AlexNet (section 4.1), VGG (3.2) and GoogLeNet (7). In a dense
pass, the model itself averages the logits (VGG, 3.2) or pools the features (ResNet) over the
positions.
"""

from collections.abc import Callable
from typing import NamedTuple

from vision.preprocess import opstring

_GOOGLENET_SCALES = (256, 288, 320, 352)
_RESNET_SCALES = (224, 256, 384, 480, 640)


class Pass(NamedTuple):
    """One pass over the data.

    Attributes:
      ops: an op string.
      dense: whether whole images of any shape are evaluated, each with its mirror image.
    """

    ops: str
    dense: bool = False


def ten_crop(decode: str, size: int, scale: int | None = None) -> list[Pass]:
    """Four corners, the centre, and their mirror images (AlexNet, section 4.1; ResNet, 3.4).

    Args:
      decode: op that decodes an image; '' if none is needed.
      size: side of the model's input, in pixels.
      scale: shorter side before cropping; by default 256 for a size of 224, scaled for others.
    """
    return [_pass(decode, f'resize_small({scale or round(256 * size / 224)})', f'ten_crop({size})')]


def crops_144(decode: str, size: int, *scales: int) -> list[Pass]:
    """GoogLeNet's 144 crops (section 7): 4 scales × 3 squares × 6 crops × 2 mirror images.

    Args:
      decode: as in `ten_crop`.
      size: as in `ten_crop`.
      *scales: shorter sides; by default 256, 288, 320, 352 for a size of 224, scaled for others.
    """
    return [_pass(decode, f'inception_crops({size}, {_scales(scales, _GOOGLENET_SCALES, size)})')]


def multi_scale_crops(decode: str, size: int, *scales: int) -> list[Pass]:
    """`ten_crop` at several scales (VGG's "multi-crop", section 3.2; ResNet, 3.4).

    Args:
      decode: as in `ten_crop`.
      size: as in `ten_crop`.
      *scales: shorter sides; by default 224, 256, 384, 480, 640 for a size of 224, scaled for
        others.
    """
    return [_pass(decode, f'multi_scale_crops({size}, {_scales(scales, _RESNET_SCALES, size)})')]


def dense(decode: str, size: int, *scales: int) -> list[Pass]:
    """Dense evaluation of the whole image at each scale, and of its mirror image.

    VGG, sections 3.2 and 4.2: dense(256, 384, 512); ResNet, 3.4: dense(224, 256, 384, 480, 640).

    Args:
      decode: as in `ten_crop`.
      size: as in `ten_crop`.
      *scales: shorter sides; by default 256 for a size of 224, scaled for others.
    """
    return [
        _pass(decode, f'resize_small({scale})')._replace(dense=True)
        for scale in _scales(scales, (256,), size)
    ]


PROTOCOLS: dict[str, Callable[..., list[Pass]]] = {
    'ten_crop': ten_crop,
    'crops_144': crops_144,
    'multi_scale_crops': multi_scale_crops,
    'dense': dense,
}


def passes(protocol: str | None, eval_ops: str, size: int) -> list[Pass]:
    """Returns the passes of a protocol.

    Args:
      protocol: a name of `PROTOCOLS`, with or without arguments; None for `eval_ops`.
      eval_ops: `preprocess.eval` of the run, whose `decode` is kept.
      size: side of the model's input, in pixels.

    Raises:
      UserError: an unknown protocol or invalid arguments.
    """
    if protocol is None:
        return [Pass(eval_ops)]
    # A protocol may list several passes: 'NAME(arguments)|NAME'.
    parsed = opstring.parse(protocol)
    opstring.check(parsed, PROTOCOLS, skip=2)
    # Keep the run's own `decode` op.
    decode = next((str(op) for op in opstring.parse(eval_ops) if op.name == 'decode'), '')
    return [p for op in parsed for p in PROTOCOLS[op.name](decode, size, *op.args, **op.kwargs)]


def _pass(*ops: str) -> Pass:
    """Returns a pass with the ops that are not empty."""
    return Pass('|'.join(op for op in ops if op))


def _scales(given: tuple[int, ...], published: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Returns the given scales, or the published ones for 224 px, scaled to another size."""
    # Published scales are for 224 px.
    return given or tuple(round(scale * size / 224) for scale in published)
