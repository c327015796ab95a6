"""The sources by name, and `load`, which opens one split of the source that a config names.

A new source is a function or a class that takes the split's name (train, validation or test) and
keyword arguments, which are keys of `config.data`, and makes a `Source` of them: one line in
`SOURCES`, or none at all as `data.source='my_module:MySource'`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vision.core.config_keys import check_arguments, find
from vision.core.durations import parse_share
from vision.core.errors import UserError, unknown
from vision.data import arrays
from vision.data.source import NoSplitError, Source


def tfds(
    split: str,
    name: str,
    data_dir: str | None = None,
    splits: Mapping[str, str | None] | None = None,
    in_memory: bool = False,
    validation: int | float | str | None = None,
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
    from vision.data import array_files, tfds_source

    validation = parse_share(validation, 'data.validation')
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

# Keys of every config.data: of the pipeline, and of splits, which not every source takes.
_PIPELINE_KEYS = ('source', 'max_corrupt', 'cache', 'repeats', 'views')
_SPLIT_KEYS = ('validation', 'test', 'fold', 'rules')


def load(data: Mapping[str, Any], split: str) -> Source:
    """Opens one split of the source that a config names.

    Args:
      data: `config.data`; `source` is a key of `SOURCES`, or 'package.module:name' of a class or
        function of one's own. A key that only another source has is ignored, so that one config can
        name two sources of the same data (`tfds` and `idx`).
      split: train, validation or test.

    Raises:
      UserError: an unknown source, split or key, or whatever is wrong with the data.
    """
    opened = find('data.source', data['source'], SOURCES)
    own = inspect.signature(opened).parameters
    if surplus := [key for key in data if key not in {*own, *_PIPELINE_KEYS, *_SPLIT_KEYS}]:
        every = [find('data.source', name, SOURCES) for name in SOURCES]
        known = {key for source in every for key in inspect.signature(source).parameters} | set(own)
        for key in surplus:
            if key not in known:
                raise unknown('key of config.data', key, known - {'split'})
    for key, parameter in own.items():
        if parameter.default is parameter.empty and key not in ('split', *data):
            raise UserError(f'data.{key} is missing: the source {data["source"]!r} needs it')
    for key in ('test', 'fold'):
        if data.get(key) is not None and key not in own:
            raise UserError(
                f'data.{key}={data[key]}: the source {data["source"]!r} has splits of its own; leave it out'
            )
    left_out = [key for key in _SPLIT_KEYS if data.get(key) is None]
    taken = {key: data[key] for key in data if key in own and key not in left_out}
    # Of a class the parameters' types, not its fields'.
    is_class = isinstance(opened, type)
    annotated = inspect.getattr_static(opened, '__init__') if is_class else opened
    name = f'source {data["source"]!r}'
    check_arguments(name, annotated, list(taken), taken)
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
