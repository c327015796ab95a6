"""Step 1, collect: sources of labelled images. `load(config.data, 'train')` gives one split.

A new source is a function or a class that takes the split's name (train, validation or test) and
keyword arguments, which are keys of `config.data`, and makes a `Source` of them: one line in
`SOURCES`, or none at all as `data.source='my_module:MySource'`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vision.core import arguments
from vision.core.errors import UserError, unknown
from vision.data import arrays, folder
from vision.data.source import BadImage, NoSplitError, Source, as_labels


def tfds(
    split: str,
    name: str,
    data_dir: str | None = None,
    splits: Mapping[str, str | None] | None = None,
    in_memory: bool = False,
    validation: int | float = 0,
) -> Source:
    """A TensorFlow data set.

    Args:
      split: train, validation or test.
      name: as TFDS has it: 'mnist', 'imagenet2012', 'cifar10:3.*.*'.
      data_dir: where it is, or will be downloaded to; TFDS's own default if None.
      splits: TFDS's names of our splits, slices included: `{'train': 'train[:90%]', …}`. One that
        is left out has its own name, if the data set has it.
      in_memory: read all of it into memory, where images have one size (MNIST, CIFAR).
      validation: with `in_memory`, how many training examples are held out, as for `idx`.

    Raises:
      UserError: an unknown data set or split.
    """
    from vision.data import tfds_source

    theirs = (splits or {}).get(split, split)
    if validation and split == 'validation':
        theirs = (splits or {}).get('train', 'train')
    if theirs is None:
        raise NoSplitError(f'{name}: there is no {split} split')
    if validation and not in_memory and split != 'test':
        raise UserError(
            f'{name}: data.validation needs data.in_memory=True; without it name slices, as in '
            "data.splits = {'train': 'train[:-5000]', 'validation': 'train[-5000:]'}"
        )
    source = tfds_source.tfds(theirs, name, data_dir)
    if not in_memory:
        return source
    in_arrays = tfds_source.as_arrays(source)
    if in_arrays is None:
        raise UserError(f'{name}: data.in_memory is for images of one size; it has several')
    if split == 'test' or not validation:
        return in_arrays
    return arrays.subset(in_arrays, split, validation)


SOURCES: dict[str, Callable[..., Source]] = {
    'digits': arrays.digits,
    'idx': arrays.idx,
    'npz': arrays.npz,
    'synthetic': arrays.synthetic,
    'folder': folder.folder,
    'list': folder.file_list,
    'tfds': tfds,
}

# Keys of config.data that concern the pipeline, not the source.
_PIPELINE_KEYS = ('source', 'max_corrupt', 'cache', 'repeats', 'views')

# What callers ask a source for.
_CONTRACT = (*Source.__annotations__, *(name for name in vars(Source) if name[0] != '_'))


def load(data: ConfigDict, split: str) -> Source:
    """Opens one split of the source that a config names.

    Args:
      data: `config.data`; `source` is a key of `SOURCES`, or 'package.module:name' of a class or
        function of one's own. A key that only another source has is ignored, so that one config can
        name two sources of the same data (`tfds` and `idx`).
      split: train, validation or test.

    Raises:
      UserError: an unknown source, split or key, or whatever is wrong with the data.
    """
    opened = arguments.find('data.source', data.source, SOURCES)
    own = inspect.signature(opened).parameters
    known = {key for source in SOURCES.values() for key in inspect.signature(source).parameters}
    known |= set(own)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values())
    for key in data:
        if key not in known and key not in _PIPELINE_KEYS and not takes_any:
            raise unknown('key of config.data', key, known - {'split'})
    for name, parameter in own.items():
        needed = (
            parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        )
        if needed and name not in ('split', *data):
            raise UserError(f'data.{name} is missing: the source {data.source!r} needs it')
    taken = {
        key: data[key] for key in data if key in own or (takes_any and key not in _PIPELINE_KEYS)
    }
    arguments.check(f'source {data.source!r}', opened, list(taken), taken)
    source = opened(split, **taken)
    if data.source not in SOURCES:
        _check(source, data.source, split)
    return source


def _check(source: Source, asked: str, split: str) -> None:
    """Checks that a user's own source keeps to the contract, as far as one example tells."""
    absent = object()
    for name in _CONTRACT:
        if name not in vars(source) and inspect.getattr_static(source, name, absent) is absent:
            raise UserError(
                f'source {asked!r}: {type(source).__name__} has no {name!r}; derive it from '
                'vision.data.Source, which says what it is'
            )
    name = 'read' if source.indexed else 'stream'
    if getattr(type(source), name) is getattr(Source, name):
        raise UserError(f'source {asked!r}: {type(source).__name__} has no method {name!r}')
    if source.num_examples < 1:
        raise UserError(f'{source.name}: the {split} split has no examples')
    if not source.indexed:
        return
    try:
        images, labels = source.read([0])
    except BadImage:  # what cannot be read is dealt with where it is read
        return
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f'source {asked!r}: read([0]) returns {len(images)} images, {len(labels)} labels'
        )
    shape, multi_label = as_labels(labels).shape[1:], source.multi_label
    if shape != ((len(source.class_names),) if multi_label else ()):
        raise UserError(
            f'source {asked!r}: read gives labels of shape {list(shape)} for an image; there are '
            f'{len(source.class_names)} classes and multi_label is {multi_label}'
        )
    image: Any = images[0]
    if source.encoded and not isinstance(image, bytes):
        raise UserError(
            f'source {asked!r}: read gives {type(image).__name__}, and encoded=True asks for bytes'
        )
    pixels = np.asarray(image)
    if not source.encoded and (pixels.shape, pixels.dtype) != (source.image_shape, np.uint8):
        raise UserError(
            f'source {asked!r}: read gives {pixels.dtype} {list(pixels.shape)}, and encoded=False '
            f'asks for uint8 of image_shape={source.image_shape}'
        )
