"""Op strings of evaluation in NumPy, so that a few image files are read without TensorFlow.

Importing TensorFlow takes longer than the rest of the prediction for one photo. On x86-64 the
results are bit-identical to those of the host forms: Pillow decodes like TensorFlow, and the
resampling does the float32 operations of TensorFlow's kernel `ScaleAndTranslate` in the same order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vision.preprocess import opstring
from vision.preprocess.ops import crops, decode, fused, resampling

_HOST_FORMS: dict[str, Callable[..., Any]] = {
    'decode': decode.decode,
    'resize': resampling.resize,
    'resize_small': resampling.resize_small,
    'central_crop': crops.central_crop,
}
_RADIUS = {'bilinear': 1.0, 'bicubic': 2.0}

Size = tuple[int, int]


def supports(ops: tuple[opstring.Op, ...]) -> bool:
    """Returns True if `apply` can apply the ops and all its results have one size."""
    if not all(op.name in _HOST_FORMS for op in ops):
        return False
    arguments = [_arguments(op) for op in ops if op.name.startswith('resize')]
    if not all(a['method'] in _RADIUS and a['antialias'] for a in arguments):
        return False
    return bool(ops) and ops[-1].name in ('resize', 'central_crop')


def takes(image: bytes | np.ndarray, channels: int) -> bool:
    """Returns True if an image is decoded as on the host.

    Pixels must have the number of channels that `decode` returns. JPEGs are refused if the result
    is grey, because TensorFlow converts them to grey before the colours are rounded.
    """
    if isinstance(image, bytes):
        return channels == 3 or not image.startswith(b'\xff\xd8\xff')
    return image.shape[-1] == channels


def output_size(ops: tuple[opstring.Op, ...]) -> Size:
    """Returns the height and width of the results of ops that are supported."""
    arguments = _arguments(ops[-1])
    return arguments['height'], arguments['width'] or arguments['height']


def apply(ops: tuple[opstring.Op, ...], image: np.ndarray) -> np.ndarray:
    """Applies ops that are supported to a decoded image.

    Args:
      ops: parsed ops.
      image: uint8 [H, W, C], with the number of channels that `decode` returns.

    Returns:
      uint8 [H', W', C].

    Raises:
      ValueError: the image is smaller than a crop.
    """
    for i, op in enumerate(ops):
        arguments, shape = _arguments(op), image.shape[:2]
        if op.name == 'central_crop':
            size = output_size((op,))
            if i and fused.can_fuse(ops[i - 1], op):
                continue  # the crop was computed with the resizing before it
            image = _crop(image, _corner(shape, size), size)
        elif op.name == 'resize':
            size = output_size((op,))
            image = _resample(image, size, (0, 0), size, arguments['method'])
        elif op.name == 'resize_small':
            height, width = (n * arguments['size'] // min(shape) for n in shape)
            size, corner = (height, width), (0, 0)
            # If a crop follows, compute only its pixels.
            if i + 1 < len(ops) and fused.can_fuse(op, ops[i + 1]):
                size = output_size(ops[i + 1 : i + 2])
                corner = _corner((height, width), size)
            image = _resample(image, (height, width), corner, size, arguments['method'])
    return image


def _arguments(op: opstring.Op) -> dict[str, Any]:
    return opstring.arguments(op, _HOST_FORMS[op.name])


def _corner(shape: Size, size: Size) -> Size:
    """Returns the upper left corner of a centred window; raises ValueError if it does not fit."""
    if shape[0] < size[0] or shape[1] < size[1]:
        raise ValueError(f'{shape} is smaller than the crop {size}')
    top, left = (crops.central_corner(n, side) for n, side in zip(shape, size, strict=True))
    return top, left


def _crop(image: np.ndarray, corner: Size, size: Size) -> np.ndarray:
    return image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]


def _resample(image: np.ndarray, whole: Size, corner: Size, size: Size, method: str) -> np.ndarray:
    """Returns a window of an image resized to `whole`, rounded to uint8."""
    rows, columns = (
        _spans(image.shape[axis], whole[axis], corner[axis], size[axis], method) for axis in (0, 1)
    )
    # Remove the columns that the window does not need.
    left = columns.starts.min()
    image = image[:, left : columns.starts.max() + len(columns.weights)]
    columns = columns._replace(starts=columns.starts - left)
    # TensorFlow sums over rows first, then over columns.
    values = _weighted_sums(image, rows).swapaxes(0, 1)
    values = _weighted_sums(np.ascontiguousarray(values), columns).swapaxes(0, 1)
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


class _Spans(NamedTuple):
    """Spans of input pixels along an axis; each of n output pixels is a weighted sum of one span.

    Attributes:
      starts: index of the first pixel of each span, int [n].
      weights: float32 [span, n].
    """

    starts: np.ndarray
    weights: np.ndarray


def _spans(old: int, new: int, corner: int, count: int, method: str) -> _Spans:
    """Returns the spans of `count` output pixels from `corner` on.

    The axis has `old` pixels and is resized to `new`. The arithmetic is that of ComputeSpansCore in
    TensorFlow's scale_and_translate_op.cc.
    """
    one, half, radius = np.float32(1), np.float32(0.5), np.float32(_RADIUS[method])
    inverse = np.float32(1.0 / float(np.float32(new) / np.float32(old)))
    scale = max(inverse, one)  # the kernel is wider when the image shrinks
    centre = (np.arange(count, dtype=np.float32) + half) * inverse + inverse * np.float32(corner)
    # The first and last pixel within the kernel's radius.
    first = np.ceil(centre - radius * scale - half)
    last = np.floor(centre + radius * scale - half)
    first, last = (np.clip(x, 0, old - 1).astype(int) for x in (first, last))
    # Normalise the weights by their sum, because the kernel may be cut off at the border.
    source = first + np.arange((last - first).max() + 1)[:, None]
    distance = np.abs((source.astype(np.float32) + half - centre) * (one / scale))
    weights = np.where(source <= last, _kernel(distance, method), np.float32(0))
    return _Spans(first, weights * (one / np.cumsum(weights, 0)[-1]))


def _kernel(x: np.ndarray, method: str) -> np.ndarray:
    """Returns the kernel at float32 distances x ≥ 0: a triangle, or Keys' cubic with a = -0.5."""
    if method == 'bilinear':
        return np.where(x < 1, 1 - x, np.float32(0))
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))


def _weighted_sums(image: np.ndarray, spans: _Spans) -> np.ndarray:
    """Returns the weighted sums along the first axis, float32 [n, …], added in the axis's order."""
    sums = np.zeros((len(spans.starts), *image.shape[1:]), np.float32)
    for i, weights in enumerate(spans.weights):
        # Where a span is shorter, the weight is 0.
        pixels = image[np.minimum(spans.starts + i, len(image) - 1)]
        sums += weights[:, None, None] * pixels
    return sums
