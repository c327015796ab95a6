"""Grad-CAM heat maps of image files, written to a PNG or an HTML page."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vision.core.text import PICTURES, AnyPath, below, common_root, output_file
from vision.data.source import FileSource, Source
from vision.prediction import pages, pictures
from vision.prediction.classifier import Classifier, Images
from vision.prediction.feed import Feed
from vision.preprocess.pictures import Picture, draw_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = 3  # heat maps of each image
_IN_PNG, _IN_PAGE = 16, 500  # the largest number of images in a PNG and in a page


def explain_files(classifier: Classifier, source: FileSource, path: AnyPath) -> int:
    """Writes each image next to the heat maps of its most probable classes.

    Args:
      classifier: any classifier.
      source: image files. Files that cannot be read are skipped.
      path: a PNG, which shows the first 16 images, or an HTML page, which shows the first 500.

    Returns:
      The number of files beyond that limit.

    Raises:
      UserError: the path has another suffix, or cannot be written.
    """
    target = output_file('explain', path, PICTURES)
    limit = _IN_PNG if target.suffix.lower() == '.png' else _IN_PAGE
    first = FileSource(source.name, (), source.paths[:limit], source.labels[:limit])
    # Rows are generated lazily: the page is written while the model runs.
    rows = _rows(classifier, first)
    if target.suffix.lower() == '.png':
        _draw(rows).savefig(target, format='png')
    else:
        note = (
            'Grad-CAM (Selvaraju et al. 2017). '
            'Warm colours mark the regions that support the class named below the picture.'
        )
        pages.write_page(target, 'Evidence for the predicted classes', note, rows)
    return source.num_examples - first.num_examples


def draw_heat_maps(classifier: Classifier, images: Images) -> 'Figure':
    """Draws each image next to the heat maps of its most probable classes.

    Args:
      classifier: any classifier.
      images: images in any form that a `Classifier` accepts. Those that cannot be read are skipped.

    Raises:
      UserError: as for a call of the classifier.
    """
    source, _ = Feed(classifier.run).gather(images)
    return _draw(_rows(classifier, source))


def _draw(rows: Iterable[pages.Row]) -> 'Figure':
    # A figure has no headings, so the image's name becomes the caption of its first picture.
    drawn = [[row[0]._replace(caption=heading), *row[1:]] for heading, row in rows]
    return draw_grid(drawn or [[Picture(None, 'no image could be read')]])


def _rows(classifier: Classifier, source: Source) -> Iterator[pages.Row]:
    root = common_root(source.paths or ())
    for e in classifier.explain_source(source, CLASSES):
        row = [Picture(e.image, 'model input')]
        for index, probability, heat in zip(e.classes, e.probabilities, e.maps, strict=True):
            caption = f'{classifier.class_names[index]}: {probability:.1%}'
            row.append(Picture(pictures.overlay(e.image, heat), caption))
        name = source.name_of(e.index)
        yield below(name, root) if source.paths else name, row
