"""Check that a user-defined source follows the contract of `Source`."""

import inspect
from typing import Any

import numpy as np

from vision.data.source import BadImage, Source

# The attributes and methods of `Source` that callers use.
_CONTRACT = (*Source.__annotations__, *(name for name in vars(Source) if name[0] != '_'))


def mistake(source: Source) -> str | None:
    """Returns the first mistake found in a user-defined source, or None.

    Reads one example.
    """
    kind, absent = type(source).__name__, object()
    # Check that all attributes and methods exist.
    for name in _CONTRACT:
        if name not in vars(source) and inspect.getattr_static(source, name, absent) is absent:
            return f'{kind} has no {name!r}; derive it from vision.data.Source, which documents it'
    # Check the method that reads, and the number of examples.
    needed = 'read' if source.indexed else 'stream'
    if getattr(type(source), needed) is getattr(Source, needed):
        return f'{kind} has no method {needed!r}'
    if source.num_examples < 1:
        return f'{source.name} has no examples'
    # Check the labels, if they are known without reading.
    known, names = vars(source).get('labels'), len(source.class_names)
    if known is not None:
        if not isinstance(known, np.ndarray) or known.shape[:1] != (source.num_examples,):
            return f'labels must be an array of {source.num_examples}, one for each example'
        if known.ndim == 1 and not -1 <= known.min() <= known.max() < names:
            return f'labels go from {known.min()} to {known.max()}, but there are {names} classes'
    # Check the image and the label of the first example.
    if not source.indexed:
        return None
    try:
        images, labels = source.read([0])
    except BadImage:  # an unreadable image is handled when the data are read
        return None
    if len(images) != 1 or len(labels) != 1:
        return f'read([0]) returns {len(images)} images and {len(labels)} labels'
    shape, several = np.shape(labels)[1:], source.multi_label
    if shape != ((names,) if several else ()):
        return (
            f'read returns a label of shape {shape}, but the source has {names} classes and '
            f'multi_label={several}'
        )
    image: Any = images[0]
    if source.encoded and not isinstance(image, bytes):
        return f'encoded=True requires bytes, but read returns {type(image).__name__}'
    # Pixels must be uint8 of the stated shape.
    asked, given = (source.image_shape, np.uint8), (np.shape(image), getattr(image, 'dtype', None))
    if not source.encoded and given != asked:
        return f'encoded=False requires uint8 of image_shape={asked[0]}, but read returns {given}'
    return None
