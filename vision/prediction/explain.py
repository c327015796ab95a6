"""Grad-CAM heat maps of image files, written to a PNG or an HTML page."""

from collections.abc import Iterator

from vision.core.text import PICTURES, AnyPath, below, common_root, output_file
from vision.data.source import FileSource
from vision.prediction import pages, pictures
from vision.prediction.classifier import Classifier
from vision.prediction.pages import Picture

CLASSES = 3  # heat maps of each image
_IN_PNG, _IN_PAGE = 16, 500  # the most images that each shows


def explain_files(classifier: Classifier, source: FileSource, path: AnyPath) -> int:
    """Writes each image beside the heat maps of its most probable classes.

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
        # A figure has no headings, so the file's name becomes the caption of its first picture.
        drawn = [[row[0]._replace(caption=heading), *row[1:]] for heading, row in rows]
        pictures.draw_grid(drawn or [[Picture(None, 'no image could be read')]], target)
    else:
        note = (
            'Grad-CAM (Selvaraju et al. 2017). '
            'Warm colours mark the regions that support the class named below the picture.'
        )
        pages.write_page(target, 'Evidence for the predicted classes', note, rows)
    return source.num_examples - first.num_examples


def _rows(classifier: Classifier, source: FileSource) -> Iterator[pages.Row]:
    root = common_root(source.paths)
    for e in classifier.explain_source(source, CLASSES):
        row = [Picture(e.image, 'model input')]
        for index, probability, heat in zip(e.classes, e.probabilities, e.maps, strict=True):
            caption = f'{classifier.class_names[index]}: {probability:.1%}'
            row.append(Picture(pictures.overlay(e.image, heat), caption))
        yield below(source.paths[e.index], root), row
