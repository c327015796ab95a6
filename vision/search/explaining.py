"""Pictures of pairs of duplicates with the points that were matched."""

import colorsys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision.core.text import PICTURES, AnyPath, output_file
from vision.evaluation.run import Run
from vision.prediction import pages
from vision.preprocess.pictures import THUMBNAIL, Picture, thumbnail, to_rgb
from vision.search.copies import Evidence
from vision.search.display import Pictures
from vision.search.groups import Pairs
from vision.search.local_features import Match

_HEIGHT, _WIDTH, _GAP = 360, 640, 12  # pixels of an image of a pair, and between the two
_LINES = 60  # matched points that are drawn; more would hide the images
_PAIRS, _IN_PNG = 300, 20  # pairs that a page and a PNG show
_OUTLINE = (255, 140, 0)


def write_explanation(
    run: Run, pairs: Pairs, groups: Sequence[dict[str, Any]], path: AnyPath
) -> None:
    """Writes pictures of the pairs of each group: the two images and the points that were matched.

    Outlines are the edges of each image, as the other shows them.

    Args:
      run: the run whose data the names 'SPLIT:ID' refer to.
      pairs: what `find_pairs` returns.
      groups: what `groups_of` makes of them.
      path: an HTML page with a section for each group, up to 300 pairs; or a PNG of up to 20 pairs.

    Raises:
      UserError: the path has another suffix, or cannot be written.
    """
    target = output_file('explain', path, PICTURES)
    positions = {name: i for i, name in enumerate(pairs.names) if pairs.files[i] is not None}
    of_pairs = [(group['path'], n) for group in groups for n in group['neighbours']]
    names = [group['path'] for group in groups] + [n['path'] for _, n in of_pairs]
    show = Pictures(run, names)

    def picture(neighbour: dict[str, Any]) -> Picture:
        one, other = positions[neighbour['copy_of']], positions[neighbour['path']]
        evidence = pairs.evidence(one, other)
        assert evidence is not None
        # The match leads from the lower content to the higher one.
        if pairs.contents[one] > pairs.contents[other]:
            one, other = other, one
        images = [show(pairs.names[i]) for i in (one, other)]
        names = [show.name(pairs.names[i]) for i in (one, other)]
        drawn = None
        if images[0] is not None and images[1] is not None:
            match = evidence.match if evidence.stage == 'features' else None
            drawn = draw_match(images[0], images[1], match)
        return Picture(drawn, f'{names[0]} – {names[1]}: {_words(evidence)}')

    if target.suffix.lower() == '.png':
        _stack([picture(n).image for _, n in of_pairs[:_IN_PNG]]).save(target)
        return

    def rows() -> Iterator[pages.Row]:
        left = _PAIRS
        for group in groups:
            shown = group['neighbours'][: max(left, 0)]
            left -= len(shown)
            if shown:
                yield show.name(group['path']), [picture(n) for n in shown]

    note = 'Pairs of each group. Lines join the points that both images have; outlines are the edges of each image in the other.'
    if len(of_pairs) > _PAIRS:
        note += f' The first {_PAIRS:,} of {len(of_pairs):,} pairs are shown.'
    pages.write_page(target, 'Why images are duplicates', note, rows(), 2 * _WIDTH)


def draw_match(one: np.ndarray, other: np.ndarray, match: Match | None = None) -> np.ndarray:
    """Draws two images side by side, with lines between their matched points.

    Args:
      one: uint8 [H, W, C].
      other: uint8 [H', W', C].
      match: the match of `one` with `other`; None draws the images only.

    Returns:
      uint8 [h, w, 3].
    """
    from PIL import Image, ImageDraw

    drawn, scales = list[Any](), list[float]()
    for image in (one, other):
        height, width = image.shape[:2]
        scale = min(_HEIGHT / height, _WIDTH / width)
        size = max(1, round(scale * width)), max(1, round(scale * height))
        drawn.append(Image.fromarray(to_rgb(image)).resize(size, Image.Resampling.LANCZOS))
        scales.append(scale)
    left = drawn[0].width + _GAP
    size = left + drawn[1].width, max(image.height for image in drawn)
    canvas = Image.new('RGB', size, 'white')
    canvas.paste(drawn[0], (0, 0))
    canvas.paste(drawn[1], (left, 0))
    if match is None:
        return np.asarray(canvas)
    draw = ImageDraw.Draw(canvas)
    # Lines between points, in colours by their order from top to bottom.
    order = np.argsort(match.one[:, 1], kind='stable')
    order = order[np.unique(np.linspace(0, len(order) - 1, _LINES).astype(int))]
    a, b = match.one[order] * scales[0], match.other[order] * scales[1] + (left, 0)
    for number, (start, end) in enumerate(zip(a, b, strict=True)):
        hue = colorsys.hsv_to_rgb(number / len(a), 0.9, 0.95)
        colour = tuple(round(255 * c) for c in hue)
        draw.line([*map(tuple, (start, end))], fill=colour, width=1)
        for x, y in (start, end):
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour, width=2)
    # The edge of each image in the other, drawn last and only inside the other.
    back = np.linalg.inv(np.concatenate([match.map, [[0, 0, 1]]]))[:2]
    edges = ((one, match.map, scales[1], left), (other, back, scales[0], 0))
    for number, (image, affine, scale, start) in enumerate(edges):
        height, width = image.shape[:2]
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
        corners = (corners @ affine[:, :2].T + affine[:, 2]) * scale + (start, 0)
        inside = Image.new('L', size, 0)
        ImageDraw.Draw(inside).polygon([*map(tuple, corners)], outline=255, width=3)
        inside.paste(0, (0, 0, left, size[1]) if number == 0 else (left - _GAP, 0, *size))
        canvas.paste(_OUTLINE, (0, 0), inside)
    return np.asarray(canvas)


def draw_part(image: np.ndarray, corners: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """Outlines a part of an image on its thumbnail.

    Args:
      image: uint8 [H, W, C].
      corners: (x, y) of the part in pixels of the image, float64 [n, 2]; see `shared_part`.
      side: pixels of the longer side of the thumbnail.

    Returns:
      uint8 [h, w, 3].
    """
    from PIL import ImageDraw

    picture = thumbnail(image, side)
    # Keep the whole line inside the picture.
    least, most = (1, 1), (picture.width - 2, picture.height - 2)
    placed = np.clip(corners * (picture.width / image.shape[1]), least, most)
    ImageDraw.Draw(picture).polygon([*map(tuple, placed)], outline=_OUTLINE, width=3)
    return np.asarray(picture)


def _words(evidence: Evidence) -> str:
    """Describes in a few words why two images are duplicates."""
    match = evidence.match
    if evidence.stage == 'features' and match is not None:
        kind = ', mirrored' if np.linalg.det(match.map[:, :2]) < 0 else ''
        return f'{match.inliers} matched points{kind}, score {evidence.score:.3f}'
    words = {'bytes': 'the same bytes', 'thumbnail': 'equal thumbnails', 'vectors': 'near vectors'}
    return f'{words[evidence.stage]}, score {evidence.score:.3f}'


def _stack(images: Sequence[np.ndarray | None]) -> Any:
    """Returns images below each other as one PIL image."""
    from PIL import Image

    there = [Image.fromarray(image) for image in images if image is not None]
    width = max((image.width for image in there), default=1)
    height = sum(image.height + _GAP for image in there)
    canvas, y = Image.new('RGB', (width, max(height, 1)), 'white'), 0
    for image in there:
        canvas.paste(image, (0, y))
        y += image.height + _GAP
    return canvas
