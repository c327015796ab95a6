"""Search by image: an index of features, nearest neighbours, duplicates, and feature quality.

`build` computes a classifier's features for the images of folders or splits and stores them in an
`Index`. `query` finds the images in an index that are nearest to new images, `find_duplicates`
finds copies within an index or between two, `CopyDetector` finds those of a new photo, `judge_run`
measures how well the features separate the classes, and `judge_copies` how well copies are found.
`describe` writes the features and file properties of a large collection as shards, from which
`build` makes an index.

Read first: `search.py`, `building.py`, `index.py`.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.search.building import add, build, remove
    from vision.search.copies import CopyDetector, Evidence, Found, Limits
    from vision.search.describing import describe
    from vision.search.descriptions import Box, Described, Named, describe_images
    from vision.search.display import Similar, draw_neighbours, write_results
    from vision.search.duplicates import find_duplicates, find_pairs
    from vision.search.explaining import draw_match, write_explanation
    from vision.search.features import judge, judge_run
    from vision.search.groups import Pairs, groups_of, write_deletable
    from vision.search.index import Index, create, load, verify
    from vision.search.judging import (
        Descriptor,
        by_detector,
        by_vectors,
        judge_copies,
        judge_oxford,
        judge_pairs,
        read_photos,
    )
    from vision.search.naming import named, open_index, whole_split
    from vision.search.search import query
    from vision.search.shards import open_shards, read_shards
    from vision.search.transformations import copy_of
    from vision.search.truth import read_oxford, read_pairs
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
