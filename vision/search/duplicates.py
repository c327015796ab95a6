"""Detection of duplicates in an index, or between two, in stages.

Files with the same bytes have one content. Candidates among the contents come from perceptual
hashes and from the vectors; thumbnails and local features decide (`copies.py`). `groups.py` makes
groups of the pairs.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vision.core.errors import UserError
from vision.core.progress import track
from vision.core.startup import available_cpus
from vision.data.source import OF_SPLIT, BadImage, read_file, read_some
from vision.evaluation.run import Run
from vision.search.copies import DEFAULT, Comparison, Evidence, Limits, Look, same_look
from vision.search.descriptions import digest
from vision.search.display import Pictures
from vision.search.groups import Pairs, check_keep, groups_of
from vision.search.index import Index, create, unit
from vision.search.kinds import faiss
from vision.search.naming import AnyIndex, own_split, tell_changed

_BATCH = 1024  # vectors, hashes or images of one step
_LOOKED_AT = 1024  # the largest number of neighbours of an image that are considered
# Tables of the index of hashes, and bits of the hash in each: hashes that differ by fewer than
# `_TABLES` (n + 1) bits differ by at most n bits in one table.
_TABLES, _TABLE_BITS = 4, 16


def find_duplicates(
    index: AnyIndex,
    run: Run,
    threshold: float = 0.95,
    limits: Limits = DEFAULT,
    against: AnyIndex | None = None,
    keep: str = 'largest',
) -> list[dict[str, Any]]:
    """Finds groups of duplicates in an index, or between two; nothing is deleted.

    `find_pairs` says what counts as a duplicate, `groups_of` what a group is.

    Args:
      index: any index.
      run: the run whose data the names 'SPLIT:ID' refer to.
      threshold: the least cosine of images that are duplicates if their thumbnails are the same.
      limits: the other thresholds.
      against: another index; only pairs of an image of the one with an image of the other count.
      keep: 'largest' or 'oldest', the image of a group to keep.

    Raises:
      UserError: a threshold is outside its range, or `keep` is unknown.
    """
    check_keep(keep)
    limits = dataclasses.replace(limits, cosine=threshold)
    return groups_of(find_pairs(index, run, limits, against), keep)


def find_pairs(
    index: AnyIndex, run: Run, limits: Limits = DEFAULT, against: AnyIndex | None = None
) -> Pairs:
    """Finds the pairs of duplicates in an index, or between two.

    Files with the same bytes are exact copies. Two other images are duplicates if local features
    show that one has a part of the other, also mirrored or turned. If one of them has few local
    features, both the cosine of their vectors and the correlation of their thumbnails must be high.
    The vectors alone do not suffice: a classifier maps many images of a class to nearly the same
    vector. Several symbolic or hard links to one file count as one image, under the file's real
    path. Missing files are skipped with a warning.

    Args:
      index: any index.
      run: the run whose data the names 'SPLIT:ID' refer to.
      limits: thresholds of the stages.
      against: another index of the same model. Images of one index are then not compared, and a
        file that is in both is left out of the first.

    Raises:
      UserError: a library of the extra `search` is not installed, or the indexes have different
        whitenings.
    """
    both = [index] if against is None else [index, against]
    whitened = [getattr(some, 'whitening', None) for some in both]
    if len({made and made.to_bytes() for made in whitened}) > 1:
        raise UserError('--against: the two indexes have different whitenings; build both without')
    # Number the images of both indexes, one index after the other.
    real = [_real_names(some) for some in both]
    names = [name for found, _ in real for name in found]
    files = [file for _, found in real for file in found]
    count = len(real[0][0])
    if against is not None:
        there = {*files[count:]}
        files[:count] = [None if file in there else file for file in files[:count]]
    left_out = {i for i, file in enumerate(files) if file is None}
    # The content of an image is the position of the first exact copy.
    contents = list(range(len(names)))
    for copies in _copies(run, names, left_out):
        for position in copies:
            contents[position] = copies[0]
    # Search each content once among the contents of the same or the other index.
    asked = _first_of_each(contents, range(count), left_out)
    among = asked
    if against is not None:
        among = _first_of_each(contents, range(count, len(names)), left_out)
    vectors = unit(np.concatenate([some.vectors() for some in both]))
    compare = Comparison(Pictures(run), limits)
    verified: dict[tuple[int, int], bool] = {}  # the value: compare the local features

    def add(one: int, other: int, deep: bool) -> None:
        low, high = sorted((contents[one], contents[other]))
        if low != high:
            verified[low, high] = deep or verified.get((low, high), False)

    if limits.bits >= 0:
        looks = _looks(compare, names, {*asked, *among})
        for one, other in _near_hashes(looks, asked, among, limits.bits):
            add(one, other, True)
    exact = create(index.made_by, vectors.shape[1])
    exact.add([names[i] for i in among], vectors[among])
    nearest = _near(exact, vectors[asked], limits)
    for one, rows in zip(asked, track(nearest, len(asked), 'comparing'), strict=True):
        for rank, row in enumerate(rows):
            add(one, among[row], rank <= limits.neighbours)
    # Verify each pair once. Pairs of an image follow each other, so that its features are at hand.
    edges = dict[tuple[int, int], Evidence]()
    for pair in track(sorted(verified), len(verified), 'verifying'):
        cosine = float(np.clip(vectors[pair[0]] @ vectors[pair[1]], -1, 1))
        found = _verify(compare, [names[i] for i in pair], cosine, verified[pair], limits)
        if found.stage:
            edges[pair] = found
    return Pairs(names, files, contents, count, against is not None, edges, compare)


def _verify(
    compare: Comparison, names: list[str], cosine: float, deep: bool, limits: Limits
) -> Evidence:
    """Compares two images; unless `deep`, only if their thumbnails are the same."""
    looks = [compare.look(name) for name in names]
    unseen = [name for name, look in zip(names, looks, strict=True) if look is None]
    if unseen or not (deep or same_look(*filter(None, looks))):
        # Images of a split without random access cannot be compared: their vectors decide. A file
        # that can no longer be read is not equal to any other image.
        only = bool(unseen) and all(map(OF_SPLIT.fullmatch, unseen)) and cosine >= limits.cosine
        return Evidence.of('vectors' if only else '', cosine)
    return compare(names[0], names[1], cosine)


def _real_names(index: AnyIndex) -> tuple[list[str], list[Any]]:
    """Replaces links by the files' real paths; returns names, and what identifies each image.

    Missing files and further links to the same file have None for an identity. If a link counted as
    a duplicate, a user who keeps one file of each group and deletes the others could lose an image.
    """
    names = index.names
    gone = tell_changed(index, names)
    real, files, seen = list[str](), list[Any](), set[Any]()
    for name in names:
        identity: Any = None if name in gone else name
        with contextlib.suppress(OSError, ValueError):  # an example of a split, or a missing file
            # Hard links have different paths, but the same device and inode.
            at = os.stat(name)
            name, identity = os.path.realpath(name), (at.st_dev, at.st_ino)
        real.append(name)
        files.append(None if identity in seen else identity)
        seen.add(identity)
    return real, files


def _copies(run: Run, names: Sequence[str], left_out: set[int]) -> Iterator[list[int]]:
    """Yields the positions of images with the same bytes."""
    # Hash only files that share their size with another file.
    by_size: dict[int, list[int]] = {}
    for position, name in enumerate(names):
        if position not in left_out and OF_SPLIT.fullmatch(name) is None and os.path.isfile(name):
            by_size.setdefault(os.path.getsize(name), []).append(position)
    to_read = [p for positions in by_size.values() if len(positions) > 1 for p in positions]
    by_bytes: dict[bytes, list[int]] = {}
    for position in track(to_read, len(to_read), 'reading'):
        with contextlib.suppress(BadImage):
            found = hashlib.sha256(read_file(names[position])).digest()
            by_bytes.setdefault(found, []).append(position)
    for position, found in _digests_of_splits(run, names):
        if position not in left_out:
            by_bytes.setdefault(found, []).append(position)
    yield from (sorted(positions) for positions in by_bytes.values())


def _digests_of_splits(run: Run, names: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    """Yields the position and the SHA-256 digest of each image that is named 'SPLIT:ID'."""
    # Read each split once, for all its examples.
    asked: dict[str, dict[int, list[int]]] = {}
    for position, name in enumerate(names):
        if match := OF_SPLIT.fullmatch(name):
            asked.setdefault(match[1], {}).setdefault(int(match[2]), []).append(position)
    for split, positions in asked.items():
        source = own_split(run, split)
        there = sorted(i for i in positions if i < source.num_examples)
        for example, image, _ in track(read_some(source, there), len(there), 'reading'):
            if not isinstance(image, BadImage):
                found = digest(image)
                yield from ((position, found) for position in positions[example])


def _first_of_each(contents: list[int], positions: range, left_out: set[int]) -> list[int]:
    """Returns the first position of each content among some positions."""
    first: dict[int, int] = {}
    for position in positions:
        if position not in left_out:
            first.setdefault(contents[position], position)
    return list(first.values())


def _looks(compare: Comparison, names: list[str], positions: Iterable[int]) -> dict[int, Look]:
    """Reads images in threads, each once; leaves out those that are unreadable or blank."""
    looks, positions = dict[int, Look](), sorted(positions)
    with ThreadPoolExecutor(available_cpus()) as threads:

        def read() -> Iterator[Look | None]:
            for start in range(0, len(positions), _BATCH):
                some = positions[start : start + _BATCH]
                yield from threads.map(lambda i: compare.look(names[i]), some)

        for position, look in zip(positions, track(read(), len(positions), 'reading'), strict=True):
            # All blank images have the same hash.
            if look is not None and look.thumbnail.any():
                looks[position] = look
    return looks


def _near_hashes(
    looks: dict[int, Look], asked: Sequence[int], among: Sequence[int], bits: int
) -> Iterator[tuple[int, int]]:
    """Yields pairs of an asked image and one among others whose hashes differ by few bits.

    The hashes of the asked image in all its turns and reflections are compared.
    """
    asked, among = ([i for i in some if i in looks] for some in (asked, among))
    if not asked or not among:
        return
    table = faiss().IndexBinaryMultiHash(64, _TABLES, _TABLE_BITS)
    table.nflip = bits // _TABLES
    table.add(np.stack([looks[i].hashes[:1] for i in among]).view(np.uint8))
    for start in range(0, len(asked), _BATCH):
        some = asked[start : start + _BATCH]
        queries = np.concatenate([looks[i].hashes for i in some])
        ends, distances, rows = table.range_search(queries[:, None].view(np.uint8), bits + 1)
        for number, one in enumerate(some):
            # The eight hashes of an image follow each other.
            of_one = slice(int(ends[8 * number]), int(ends[8 * number + 8]))
            order = np.argsort(distances[of_one], kind='stable')[:_LOOKED_AT]
            yield from ((one, among[row]) for row in rows[of_one][order].tolist())


def _near(index: Index, vectors: np.ndarray, limits: Limits) -> Iterator[list[int]]:
    """Yields for each vector the rows of its neighbours, nearest first.

    They are the nearest `limits.neighbours`, besides the image itself, and all with a cosine of at
    least `limits.cosine`, but at most `_LOOKED_AT`.
    """
    least = limits.neighbours + 1
    for start in range(0, len(vectors), _BATCH):
        # Ask for more neighbours while any image's farthest one still reaches the threshold.
        some = vectors[start : start + _BATCH]
        count = max(16, least)
        found = index.search(some, count)
        while count < min(_LOOKED_AT, len(index)) and any(
            nearest and nearest[-1][1] >= limits.cosine for nearest in found
        ):
            count *= 4
            found = index.search(some, count)
        for nearest in found:
            yield [i for n, (i, s) in enumerate(nearest) if n < least or s >= limits.cosine]
