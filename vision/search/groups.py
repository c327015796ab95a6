"""Groups of duplicates: which image to keep, and a list of files that could be deleted."""

import csv
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

from vision.core.errors import unknown
from vision.core.text import AnyPath, json_text, output_file
from vision.data.source import OF_SPLIT
from vision.search.copies import Comparison, Evidence

KEEP = ('largest', 'oldest')
LISTS = ('.csv', '.json')  # file types of the list of files that could be deleted
_WHOLE = 0.9  # least part of the area of a deleted file that the kept one shows
_COLUMNS = ('delete', 'keep', 'stage', 'score', 'inliers', 'agreement', 'shared')


@dataclasses.dataclass
class Pairs:
    """Pairs of duplicates among images of one index, or of two.

    Attributes:
      names: the images' names, with the files' real paths; the second index follows the first.
      files: what identifies each image's file; None for an image that is left out.
      contents: for each image the position of the first exact copy.
      count: number of images of the first index.
      two: only an image of the first index and one of the second are a pair.
      edges: evidence of pairs of contents, the lower first.
      compare: the comparison that read the images.
    """

    names: list[str]
    files: list[Any]
    contents: list[int]
    count: int
    two: bool
    edges: dict[tuple[int, int], Evidence]
    compare: Comparison

    def evidence(self, one: int, other: int) -> Evidence | None:
        """Returns why two images are duplicates, or None if they are not."""
        if one == other or (self.two and (one < self.count) == (other < self.count)):
            return None
        pair = self._key(one, other)
        return Evidence.of('bytes') if pair[0] == pair[1] else self.edges.get(pair)

    def groups(self) -> list[list[int]]:
        """Returns the connected components of two or more images, in order of their positions."""
        members: dict[int, list[int]] = {}
        for position, content in enumerate(self.contents):
            if self.files[position] is not None:
                members.setdefault(content, []).append(position)
        # Unite the images of pairs of contents in a forest; a content is a pair with itself.
        parent = list(range(len(self.names)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = i = parent[parent[i]]
            return i

        for one, other in [*((c, c) for c in members), *self.edges]:
            for some in self._paired(members.get(one, []), members.get(other, [])):
                for position in some:
                    low, high = sorted((root(some[0]), root(position)))
                    parent[high] = low
        found: dict[int, list[int]] = {}
        for position in range(len(self.names)):
            found.setdefault(root(position), []).append(position)
        return [group for group in found.values() if len(group) > 1]

    def _paired(self, one: list[int], other: list[int]) -> Iterator[list[int]]:
        """Yields lists of connected images of two contents."""
        if not self.two:
            yield sorted({*one, *other})
            return
        # Images of one index are connected by images of the other only.
        for a, b in ((one, other), (other, one)):
            first = [i for i in a if i < self.count]
            second = [i for i in b if i >= self.count]
            if first and second:
                yield first + second

    def _key(self, one: int, other: int) -> tuple[int, int]:
        low, high = sorted((self.contents[one], self.contents[other]))
        return low, high


def groups_of(pairs: Pairs, keep: str = 'largest') -> list[dict[str, Any]]:
    """Makes groups of duplicates: connected components of the pairs.

    Two images of a group need not be duplicates of each other, such as two halves of a photo that
    is in the group, too. A file could be deleted only if it is itself a duplicate of a file that is
    kept that shows at least nine tenths of its area. Of two indexes, only files of the first could be deleted. Examples of a split that are not
    files are neither kept nor deleted.

    Args:
      pairs: what `find_pairs` returns.
      keep: 'largest' prefers the image with the most pixels, then bytes; 'oldest' the file with the
        earliest modification time. What comes first in the index decides ties.

    Returns:
      `{'path', 'neighbours': [{'path', 'score', 'stage', 'copy_of', 'inliers'}, …], 'keep',
      'delete': [{'delete', 'keep', 'stage', 'score', 'inliers', 'agreement', 'shared'}, …]}` for each group: its
      first image, the others with the image that each was matched with, exact copies first; the
      path of the preferred file, or None without files; and what could be deleted in favour of
      which file. `shared` is the fraction of the area of the deleted image that the other shows;
      None if it was not measured.

    Raises:
      UserError: `keep` is unknown.
    """
    check_keep(keep)
    return [_group(pairs, members, keep) for members in pairs.groups()]


def check_keep(keep: str) -> None:
    """Raises UserError unless `keep` is known."""
    if keep not in KEEP:
        raise unknown('keep', keep, KEEP)


def _group(pairs: Pairs, members: list[int], keep: str) -> dict[str, Any]:
    names, head = pairs.names, members[0]
    # An image is deleted in favour of the first preferred image that it is a duplicate of.
    order = _preferred(pairs, [i for i in members if not OF_SPLIT.fullmatch(names[i])], keep)
    kept, rows = list[int](), list[dict[str, Any]]()
    stay = [i for i in order if pairs.two and i >= pairs.count]
    for position in order:
        reasons = [(i, pairs.evidence(i, position)) for i in kept]
        # An exact copy in the second index suffices, whichever file is older.
        reasons += [
            (i, e) for i in stay if (e := pairs.evidence(i, position)) and e.stage == 'bytes'
        ]
        # A file that shows more than the kept one stays.
        possible = [_row(pairs, position, i, e) for i, e in reasons if e]
        row = next((r for r in possible if r['shared'] is None or r['shared'] >= _WHOLE), None)
        if row is None or position in stay:
            kept.append(position)
        else:
            rows.append(row)
    # Match each image with the first of the group, a kept one, or any other that it is a copy of.
    neighbours = list[dict[str, Any]]()
    for position in members[1:]:
        others = (head, *kept, *members)
        other, found = next((i, e) for i in others if (e := pairs.evidence(i, position)))
        neighbours.append(
            {
                'path': names[position],
                'score': found.score,
                'stage': found.stage,
                'copy_of': names[other],
                'inliers': found.match.inliers if found.match else 0,
            }
        )
    neighbours.sort(key=lambda n: -n['score'])
    best = names[kept[0]] if kept else None
    return {'path': names[head], 'neighbours': neighbours, 'keep': best, 'delete': rows}


def _preferred(pairs: Pairs, members: list[int], keep: str) -> list[int]:
    """Sorts the images of a group, those to keep first."""

    def rank(position: int) -> tuple[float, ...]:
        name = pairs.names[position]
        try:
            about = os.stat(name)
        except OSError:  # deleted in the meantime
            return (math.inf,)
        look = pairs.compare.look(pairs.names[pairs.contents[position]])
        pixels = look.size[0] * look.size[1] if look else 0
        # Of two indexes, equally large images of the second stay.
        size = -pixels, pairs.two and position < pairs.count, -about.st_size
        return (about.st_mtime_ns, *size) if keep == 'oldest' else size

    return sorted(members, key=rank)


def _row(pairs: Pairs, deleted: int, kept: int, found: Evidence) -> dict[str, Any]:
    """Returns the row of a file that could be deleted, for `write_deletable`."""
    match, shared = found.match, 1.0 if found.stage == 'bytes' else None
    if match is not None and found.stage == 'features':
        # The match is of the lower content with the higher one.
        shared = match.shared[int(pairs.contents[deleted] > pairs.contents[kept])]
    return {
        'delete': pairs.names[deleted],
        'keep': pairs.names[kept],
        'stage': found.stage,
        'score': found.score,
        'inliers': match.inliers if match else 0,
        'agreement': match.agreement if match else None,
        'shared': shared,
    }


def write_deletable(groups: Iterable[dict[str, Any]], path: AnyPath) -> None:
    """Writes the list of files that could be deleted, as CSV or JSON; nothing is deleted.

    Args:
      groups: what `groups_of` returns.
      path: the file, .csv or .json.

    Raises:
      UserError: the path has another suffix, or cannot be written.
    """
    target = output_file('deletable', path, LISTS)
    rows = [row for group in groups for row in group['delete']]
    # Keep the bytes of file names that are not UTF-8.
    with open(target, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
        if target.suffix.lower() == '.json':
            file.write(json_text(rows, indent=2) + '\n')
            return
        writer = csv.DictWriter(file, _COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
