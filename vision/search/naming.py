"""Images, shards and indexes that users name."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vision.core.errors import UserError
from vision.core.text import AnyPath, as_list, as_path
from vision.data import registry as data
from vision.data.source import OF_SPLIT, Source
from vision.evaluation.run import Run
from vision.prediction import feed
from vision.search import index as index_lib
from vision.search import milvus, shards
from vision.search.descriptions import Box, Named
from vision.search.index import Index
from vision.search.milvus import MilvusIndex

AnyIndex = Index | MilvusIndex


def whole_split(run: Run, split: str) -> Named:
    """Returns all images of a split of the run's data.

    Raises:
      UserError: the split does not exist, or the run has no data.
    """
    source = own_split(run, split)
    return Named(source, source.paths or [f'{split}:{i}' for i in range(source.num_examples)])


def own_split(run: Run, split: str) -> Source:
    """Returns a split of the run's data; raises UserError if there is no such split or no data."""
    if not (run.path / 'dataset.json').is_file():
        raise UserError(f'{run.path} has weights only, no data: name files or folders, not a split')
    return data.load(run.config.data, split)


def named(run: Run, words: AnyPath | Iterable[AnyPath]) -> list[Named]:
    """Finds the images that a user names on the command line.

    Args:
      run: the run whose data 'SPLIT:ID' refers to.
      words: one or several files, folders, globs, or examples such as 'test:12'.

    Returns:
      The images in the order of the words. Consecutive files, folders and globs share one source.

    Raises:
      UserError: a folder or glob has no images, or an example does not exist.
    """
    # Files wait in a list until an example of a split interrupts them.
    found: list[Named] = []
    waiting: list[str] = []

    def flush() -> None:
        if waiting:
            source = feed.files(waiting)
            found.append(Named(source, source.paths))
            waiting.clear()

    for word in as_list(words):
        match = OF_SPLIT.fullmatch(word)
        if match is None or os.path.exists(word):
            waiting.append(word)
        else:
            flush()
            found.append(_one_example(run, word, match[1], int(match[2])))
    flush()
    return found


def _one_example(run: Run, word: str, split: str, index: int) -> Named:
    # Make a source of this one example, so that the rest of the split need not be read.
    source = own_split(run, split)
    if index >= source.num_examples:
        raise UserError(f'{word}: the split has examples 0 … {source.num_examples - 1}')
    one = source.subset([index])
    return Named(one, one.paths or [word])


def of_shards(words: list[str]) -> Path | None:
    """Returns the folder of shards that a user names; None if it is a folder of images.

    A folder of images may have a manifest.json, too.
    """
    folder = as_path(words[0]) if len(words) == 1 else None
    if folder is None or not shards.is_shards(folder):
        return None
    if not any(folder.glob('shard-*.parquet')):
        try:
            shards.read_manifest(folder)
        except UserError:
            return None
    return folder


def in_milvus(place: Any) -> bool:
    """Returns True for milvus:URI, False for the file of an index."""
    return isinstance(place, str) and place.startswith(milvus.PREFIX)


def open_index(place: AnyPath, read_only: bool = False, **built_with: Any) -> AnyIndex:
    """Opens an index in a file or in Milvus; see `index.load` and `milvus.load`.

    Args:
      place: the file, or 'milvus:URI'.
      read_only: see `index.load`.
      **built_with: options of `building.build` that the index must have been built with: `metric`,
        `kind` and `whiten`.

    Raises:
      UserError: the index cannot be opened, or was built with other options.
    """
    made = milvus.load(str(place)) if in_milvus(place) else index_lib.load(place, read_only)
    for name, value in built_with.items():
        if (has := getattr(made, name)) != value:
            raise UserError(
                f'--{name}={value}: {os.fsdecode(place)} was built with --{name}={has}; '
                'build it again'
            )
    return made


def parse_box(text: str) -> Box:
    """Parses 'x,y,width,height'.

    Raises:
      UserError: the text is not four integers, or the box is empty or begins outside the picture.
    """
    words = text.split(',')
    numbers = [int(word) for word in words if re.fullmatch(r'\s*\d{1,9}\s*', word, re.ASCII)]
    if len(words) != 4 or len(numbers) != 4 or not (numbers[2] and numbers[3]):
        raise UserError(
            f'--box={text}: write x,y,width,height in pixels of the upright picture, such as '
            '--box=40,0,200,150'
        )
    return Box(*numbers)


def tell_changed(index: AnyIndex, names: Iterable[str]) -> set[str]:
    """Warns of files that are missing or newer than the index; returns the missing ones."""
    written = index.read[1][-1] if index.read else np.inf
    gone, newer = set[str](), set[str]()
    for name in names:
        if OF_SPLIT.fullmatch(name):
            continue
        try:
            if os.stat(name).st_mtime_ns > written:
                newer.add(name)
        except (OSError, ValueError):
            gone.add(name)
    # One line for each kind, with an example.
    for some, what in ((gone, 'no longer exist'), (newer, 'have changed since it was built')):
        if some:
            text = 'images of the index that %s: %d, for example %r; build the index again'
            logging.warning(text, what, len(some), min(some))
    return gone
