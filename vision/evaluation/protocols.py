"""The papers' test protocols: what is cut out of an image, and how the answers are averaged.

`--eval.protocol=NAME` or `NAME(arguments)`, in the grammar of op strings. A protocol is one or
several passes over the data, each an op string. All views of an image that a pass makes go through
the model in one batch. What is averaged is the softmax's probability, over views and passes, each
with the same weight, as AlexNet (section 4.1), VGG (3.2) and GoogLeNet (section 7) have it; over
the positions of a dense pass the model itself averages logits (VGG, 3.2; ResNet's pooling).
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
      dense: the images keep their shapes; each and its mirror image are fed whole.
    """

    ops: str
    dense: bool = False


def ten_crop(decode: str, size: int, scale: int | None = None) -> list[Pass]:
    """Four corners, centre and their mirror images (AlexNet, 4.1; ResNet, 3.4).

    Args:
      decode: the op that reads an image, if there must be one.
      size: of what the model is fed.
      scale: of the shorter side; 256 for models that are fed 224 px, in proportion for others.
    """
    return [_pass(decode, f'resize_small({scale or round(256 * size / 224)})', f'ten_crop({size})')]


def crops_144(decode: str, size: int, *scales: int) -> list[Pass]:
    """GoogLeNet's 144 crops (section 7): four scales, three squares, six crops, two mirror images.

    Args:
      decode: as in `ten_crop`.
      size: likewise.
      *scales: of the shorter side; 256, 288, 320, 352 for models that are fed 224 px.
    """
    return [_pass(decode, f'inception_crops({size}, {_scales(scales, _GOOGLENET_SCALES, size)})')]


def multi_scale_crops(decode: str, size: int, *scales: int) -> list[Pass]:
    """`ten_crop` at several scales (VGG's "multi-crop", 3.2; ResNet, 3.4).

    Args:
      decode: as in `ten_crop`.
      size: likewise.
      *scales: of the shorter side; 224, 256, 384, 480, 640 for models that are fed 224 px.
    """
    return [_pass(decode, f'multi_scale_crops({size}, {_scales(scales, _RESNET_SCALES, size)})')]


def dense(decode: str, size: int, *scales: int) -> list[Pass]:
    """The model over the whole image at each scale, and over its mirror image.

    VGG, sections 3.2 and 4.2: dense(256, 384, 512); ResNet, 3.4: dense(224, 256, 384, 480, 640).

    Args:
      decode: as in `ten_crop`.
      size: likewise.
      *scales: of the shorter side; 256 for models that are fed 224 px.
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
    """The passes of a protocol.

    Args:
      protocol: a name of `PROTOCOLS`, with arguments or without; None for `eval_ops` as they are.
      eval_ops: `preprocess.eval` of the run, whose `decode` is kept.
      size: of what the model is fed, pixels.

    Raises:
      UserError: no such protocol, or arguments that it does not have.
    """
    if protocol is None:
        return [Pass(eval_ops)]
    parsed = opstring.parse(protocol)
    opstring.check(parsed, PROTOCOLS, skip=2)
    decode = next((str(op) for op in opstring.parse(eval_ops) if op.name == 'decode'), '')
    return [p for op in parsed for p in PROTOCOLS[op.name](decode, size, *op.args, **op.kwargs)]


def _pass(*ops: str) -> Pass:
    return Pass('|'.join(op for op in ops if op))


def _scales(given: tuple[int, ...], published: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The scales that were asked for, or those that a paper gives for 224 px, for another size."""
    return given or tuple(round(scale * size / 224) for scale in published)
