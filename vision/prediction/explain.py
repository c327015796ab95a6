"""Heat maps of the likeliest classes, laid over the images: a PNG or a page."""

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

CLASSES = 3  # explained of each image
_IN_PNG, _IN_PAGE = 16, 500  # images


def explain_files(classifier: Classifier, source: FileSource, path: AnyPath) -> int:
    """Writes each image and, beside it, where the evidence for its likeliest classes lies.

    Args:
      classifier: any.
      source: files; what cannot be read is left out.
      path: of a PNG, which shows the first 16 images, or of an HTML page, 500.

    Returns:
      How many files were left out because the picture is full.

    Raises:
      UserError: the path has another ending, or cannot be written to.
    """
    target = output_file('explain', path, PICTURES)
    limit = _IN_PNG if target.suffix.lower() == '.png' else _IN_PAGE
    first = FileSource(source.name, (), source.paths[:limit], source.labels[:limit])
    rows = _rows(classifier, first)
    if target.suffix.lower() == '.png':
        _draw(rows).savefig(target, format='png')
    else:
        note = (
            'Grad-CAM (Selvaraju et al. 2017): the warmer, the more a place speaks for the class.'
        )
        pages.write_page(target, 'Why these classes', note, rows)
    return source.num_examples - first.num_examples


def draw_heat_maps(classifier: Classifier, images: Images) -> 'Figure':
    """Draws each image and, beside it, where the evidence for its likeliest classes lies (Grad-CAM).

    Args:
      classifier: any.
      images: N, in any of the forms that a `Classifier` takes; what cannot be read is left out.

    Raises:
      UserError: as for a call of the classifier.
    """
    source, _ = Feed(classifier.run).gather(images)
    return _draw(_rows(classifier, source))


def _draw(rows: Iterable[pages.Row]) -> 'Figure':
    drawn = [[row[0]._replace(caption=heading), *row[1:]] for heading, row in rows]
    return draw_grid(drawn or [[Picture(None, 'no image could be read')]])


def _rows(classifier: Classifier, source: Source) -> Iterator[pages.Row]:
    root = common_root(source.paths or ())
    for e in classifier.explain_source(source, CLASSES):
        row = [Picture(e.image, 'what the model is fed')]
        for index, probability, heat in zip(e.classes, e.probabilities, e.maps, strict=True):
            caption = f'{classifier.class_names[index]}: {probability:.1%}'
            row.append(Picture(pictures.overlay(e.image, heat), caption))
        name = source.name_of(e.index)
        yield below(name, root) if source.paths else name, row
