"""Search by image: features in an index, nearest neighbours, duplicates, and how well features tell classes apart.

`build` describes folders or splits with a classifier's features and writes an `Index`, `query` finds the nearest
images for new ones, `find_duplicates` the copies inside an index, and `judge_run` measures the features.

Read first: `search.py`, `index.py`.
"""

from typing import TYPE_CHECKING

from vision.core.lazy import public_names

if TYPE_CHECKING:
    from vision.search.duplicates import find_duplicates
    from vision.search.features import judge, judge_run
    from vision.search.index import Index, create, load
    from vision.search.search import (
        Similar,
        add,
        build,
        draw_neighbours,
        named,
        query,
        whole_split,
        write_results,
    )
else:
    __all__, __getattr__, __dir__ = public_names(__name__)
