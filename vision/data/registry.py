"""The registry of sources, and `load`, which opens one split of the source that a config names.

A source is a function that returns a `Source`, or a class derived from it. It takes the name of the
split (train, validation or test) and keyword arguments, which are keys of `config.data`. To add
one, add a line to `SOURCES`, or name it as `data.source='my_module:MySource'`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vision.core.config_keys import check_arguments, find
from vision.core.durations import parse_share
from vision.core.errors import UserError, unknown
from vision.core.progress import phase
from vision.data import arrays
from vision.data.shares import ALL
from vision.data.source import NoSplitError, Source


def tfds(
    split: str,
    name: str,
    data_dir: str | None = None,
    splits: Mapping[str, str | None] | None = None,
    in_memory: bool = False,
    validation: int | float | str | None = None,
) -> Source:
    """Opens one split of a TensorFlow data set.

    Args:
      split: train, validation or test.
      name: TFDS name: 'mnist', 'imagenet2012', 'cifar10:3.*.*'.
      data_dir: folder of the prepared data sets; None is TFDS's default.
      splits: TFDS names of our splits, possibly with slices: `{'train': 'train[:90%]', …}`. A split
        that is not listed has the same name in TFDS.
      in_memory: reads the whole split into memory; all images must have one size (MNIST, CIFAR).
      validation: with `in_memory`, the part of the training split to use for validation, as in
        `idx`.

    Raises:
      UserError: the data set or split is unknown, or the arguments do not match.
    """
    from vision.data import array_files, tfds_source

    # Find the TFDS split; a validation split may be taken from train.
    validation = parse_share(validation, 'data.validation')
    tfds_split = (splits or {}).get(split, split)
    if validation and split == 'validation':
        tfds_split = (splits or {}).get('train', 'train')
    if tfds_split is None:
        raise NoSplitError(f'{name}: there is no {split} split')
    if validation and not in_memory and split != 'test':
        raise UserError(
            f'{name}: data.validation needs data.in_memory=True; otherwise use slices, such as '
            "data.splits = {'train': 'train[:-5000]', 'validation': 'train[-5000:]'}"
        )
    source = tfds_source.tfds(tfds_split, name, data_dir)
    if not in_memory:
        return source
    # Read the split into memory, and hold out the validation split.
    in_arrays = tfds_source.as_arrays(source)
    if in_arrays is None:
        raise UserError(
            f'{name}: data.in_memory needs images of one size, but the images differ in size'
        )
    if split == 'test' or not validation:
        return in_arrays
    return array_files.subset(in_arrays, split, validation)


SOURCES: dict[str, Callable[..., Source] | str] = {
    'digits': arrays.digits,
    'idx': 'vision.data.array_files:idx',
    'npz': 'vision.data.array_files:npz',
    'synthetic': arrays.synthetic,
    'folder': 'vision.data.folder:folder',
    'list': 'vision.data.file_list:file_list',
    'tfds': tfds,
}

# Keys of config.data that are not arguments of a source, and keys for splits, which only some
# sources take.
_PIPELINE_KEYS = ('source', 'max_corrupt', 'cache', 'repeats', 'views')
_SPLIT_KEYS = ('validation', 'test', 'fold', 'rules')
_WITH_ALL = ('folder', 'list')  # sources with the split 'all'


@phase('opening the data')
def load(data: Mapping[str, Any], split: str) -> Source:
    """Opens one split of the source that a config names.

    Args:
      data: `config.data`. Its `source` is a key of `SOURCES`, or 'package.module:name' of a
        user-defined class or function. Keys that only other sources take are ignored, so that one
        config can describe two sources of the same data (`tfds` and `idx`).
      split: train, validation or test; or 'all', which only folders and lists have, and
        user-defined sources that accept it.

    Raises:
      UserError: the source, the split or a key is unknown, or the data are invalid.
    """
    # Check the names of the keys against all sources.
    opened = find('data.source', data['source'], SOURCES)
    # TFDS has a split of this name without the validation split that is taken from train.
    if split == ALL and data['source'] in SOURCES and data['source'] not in _WITH_ALL:
        raise UserError(
            f"the source {data['source']!r} has no split 'all'; only folders and lists have it"
        )
    own = inspect.signature(opened).parameters
    if surplus := [key for key in data if key not in {*own, *_PIPELINE_KEYS, *_SPLIT_KEYS}]:
        every = [find('data.source', name, SOURCES) for name in SOURCES]
        known = {key for source in every for key in inspect.signature(source).parameters} | set(own)
        known |= {*_PIPELINE_KEYS, *_SPLIT_KEYS}
        for key in surplus:
            if key not in known:
                raise unknown('key of config.data', key, known - {'split'})
    # Check that required keys are set, and that `test` and `fold` would not be ignored.
    for key, parameter in own.items():
        if parameter.default is parameter.empty and key not in ('split', *data):
            raise UserError(f'data.{key} is missing: the source {data["source"]!r} needs it')
    for key in ('test', 'fold'):
        if data.get(key) is not None and key not in own:
            raise UserError(
                f'data.{key}={data[key]}: the source {data["source"]!r} has fixed splits; remove '
                'this key'
            )
    left_out = [key for key in _SPLIT_KEYS if data.get(key) is None]
    taken = {key: data[key] for key in data if key in own and key not in left_out}
    # Check the values by the annotations of the function, or of the class's `__init__`.
    is_class = isinstance(opened, type)
    annotated = inspect.getattr_static(opened, '__init__') if is_class else opened
    name = f'source {data["source"]!r}'
    check_arguments(name, annotated, list(taken), taken)
    # Open the source, and check a user-defined one by its first example.
    if data['source'] in SOURCES:
        return opened(split, **taken)
    try:
        source = opened(split, **taken)
    except OSError as e:
        raise UserError(f'{name}: {e}') from None
    from vision.data.own_source import mistake

    if (wrong := mistake(source)) is not None:
        raise UserError(f'{name}: {wrong}')
    return source
