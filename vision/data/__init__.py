"""Step 1, collect: sources of labelled images. `load(config.data, 'train')` gives one split.

A new source is one function and one line in `SOURCES`. It takes the split's name (train,
validation or test) and keyword arguments, which are keys of `config.data`.
"""

import inspect
from collections.abc import Callable

from ml_collections import ConfigDict

from vision.core.errors import unknown
from vision.data import arrays
from vision.data.source import Source

SOURCES: dict[str, Callable[..., Source]] = {
    'digits': arrays.digits,
    'idx': arrays.idx,
    'npz': arrays.npz,
    'synthetic': arrays.synthetic,
}

# Keys of config.data that concern the pipeline, not the source.
_PIPELINE_KEYS = ('source', 'max_corrupt', 'cache')


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
    return source(split, **{key: data[key] for key in data if key in own})
