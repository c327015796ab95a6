"""Step 1, collect: sources of labelled images. `load(config.data, 'train')` gives one split.

A new source is one function and one line in `SOURCES`. It takes the split's name (train,
validation or test) and keyword arguments, which are keys of `config.data`.
"""

import inspect
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from vision.core.errors import UserError, unknown
from vision.data import arrays, folder
from vision.data.source import NoSplitError, Source


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


def load(data: ConfigDict, split: str) -> Source:
    """Opens one split of the source that a config names.

    Args:
      data: `config.data`. A key that only another source has is ignored, so that one config can
        name two sources of the same data (`tfds` and `idx`).
      split: train, validation or test.

    Raises:
      UserError: an unknown source, split or key, or whatever is wrong with the data.
    """
    if data.source not in SOURCES:
        raise unknown('data.source', data.source, SOURCES)
    known = {name for source in SOURCES.values() for name in inspect.signature(source).parameters}
    for key in data:
        if key not in known and key not in _PIPELINE_KEYS:
            raise unknown('key of config.data', key, known - {'split'})
    source = SOURCES[data.source]
    own = inspect.signature(source).parameters
    for name, parameter in own.items():
        if parameter.default is parameter.empty and name not in ('split', *data):
            raise UserError(f'data.{name} is missing: the source {data.source!r} needs it')
    return source(split, **{key: data[key] for key in data if key in own})
