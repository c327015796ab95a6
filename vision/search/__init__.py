"""Search by image: an index of features, nearest neighbours, duplicates, and feature quality.

`build` computes a classifier's features for the images of folders or splits and stores them in an
`Index`. `query` finds the images in an index that are nearest to new images, `find_duplicates`
finds copies within an index, and `judge_run` measures how well the features separate the classes.
`describe` writes the features and file properties of a large collection as shards, from which
`build` makes an index.

Read first: `search.py`, `index.py`.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.search.describing import describe
    from vision.search.descriptions import Described, Named, describe_images
    from vision.search.display import Similar, draw_neighbours, write_results
    from vision.search.duplicates import find_duplicates
    from vision.search.features import judge, judge_run
    from vision.search.index import Index, create, load
    from vision.search.search import add, build, named, query, remove, whole_split
    from vision.search.shards import open_shards, read_shards
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
