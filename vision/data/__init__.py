"""Step 1, collect: sources of labelled images, their splits and their order.

`load(config.data, 'train')` opens one split of the source that a config names. A `Source`
provides class names, labels, and images by id. `SOURCES` has the sources by name. A
user-defined source is a subclass of `Source` that the config names as 'my_module:MySource'
(docs/extending.md).

Read first: `source.py` (the contract), `registry.py` (the sources by name), `order.py` (the order
of the examples).
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.data.arrays import digits, from_arrays, synthetic
    from vision.data.registry import SOURCES, load
    from vision.data.source import ArraySource, BadImage, FileSource, NoSplitError, Source
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
