"""Preview of a config's data: faults, statistics, and pictures of the model's input."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from vision.core import config as config_lib
from vision.core import fonts
from vision.core import mesh as mesh_lib
from vision.core.errors import UserError
from vision.core.progress import phase
from vision.core.text import json_text
from vision.data import registry as data
from vision.data.folder import SPLITS
from vision.data.source import NoSplitError, Source, label_text
from vision.prediction.classifier import Classifier
from vision.preprocess import inputs
from vision.preprocess.unreadable import check_corrupt
from vision.studies import nearness
from vision.studies.inspect import describe
from vision.studies.preview_page import write_page
from vision.studies.survey import survey
from vision.training.setup import loading_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 8
_PAIRS = 24  # images that are shown before and after augmentation
_BARS = 60  # classes in the bar chart; more would not be legible
_LABEL, _HEAD = 20, 150  # largest number of characters of a class name and of the figure's title
_NAMED = 20  # images of one kind that the text names
_SHOWN = 160  # pixels of the shorter side of the pictures before augmentation


def preview(
    config: ConfigDict, output: str, classifier: Classifier | None = None
) -> dict[str, Any]:
    """Writes a preview of a config's data: `index.html`, two pictures and `summary.json`.

    The pictures are `inputs.png` (images before and after augmentation) and `classes.png`.

    Args:
      config: the whole config.
      output: the folder, which is created if it does not exist.
      classifier: describes the images for near copies and outliers; thumbnails by default.

    Returns:
      The content of `summary.json`: the result of `vision.studies.inspect.describe`, and `faults`,
      a list of the reasons why training would refuse the data.

    Raises:
      UserError: no split can be opened, the op strings do not fit the images, or the folder cannot
        be written to.
    """
    config = config_lib.resolve(config)
    folder = _make_folder(output)
    # Images that cannot be read do not stop the preview, which reports them.
    loading = dataclasses.replace(loading_of(config), max_corrupt=1.0)
    sources, faults = _open(config.data)
    with phase('drawing inputs.png'):
        _draw_inputs(next(iter(sources.values())), loading).savefig(folder / 'inputs.png')
    summary = describe(sources, classifier) | {'faults': faults}
    # Training refuses more unreadable images than this; only the test split may have them.
    for split, source in sources.items():
        if split != 'test':
            try:
                unreadable = summary['splits'][split]['unreadable']
                check_corrupt(unreadable, source, config.data.max_corrupt)
            except UserError as e:
                faults.append(str(e))
    # Escape bytes of file names that are not UTF-8.
    (folder / 'summary.json').write_text(
        json_text(summary, indent=2, ensure_ascii=False), 'utf-8', 'backslashreplace'
    )
    # Write the page last, because it embeds the two pictures.
    with phase('writing the page'):
        _draw_classes(summary, folder / 'classes.png')
        write_page(folder, summary, sources, text(summary))
    return summary


def _make_folder(output: str) -> Path:
    """Creates the folder and checks that it is writable, before the long work."""
    folder = Path(output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as e:
        raise UserError(
            f'--output={output}: the folder cannot be written to: {e.strerror}'
        ) from None


def text(summary: dict[str, Any]) -> str:
    """Returns the summary as text, faults first."""
    lines = []
    if summary['faults']:
        lines.append('TRAINING WOULD REFUSE THIS DATA:')
        lines += [f'  {fault}' for fault in summary['faults']]
    # The statistics and the suspicious images of each split.
    for split, s in summary['splits'].items():
        counts = s['classes'].values()
        lines += [
            f'{split}: {s["examples"]:,} images, {len(s["classes"])} classes with '
            f'{min(counts, default=0):,} to {max(counts, default=0):,} images each',
            f'  height {_range(s["height"])}, width {_range(s["width"])}',
            f'  mean {_figures(s["mean"])}, standard deviation {_figures(s["std"])}',
        ]
        if not summary['faults']:  # faults already name empty classes
            lines += [
                f'  class {name!r} has no images' for name, n in s['classes'].items() if not n
            ]
        lines += [f'  cannot be read: {name}: {why}' for name, why in s['unreadable'].items()]
        lines += [f'  exact copies: {" = ".join(names)}' for names in _some(s['copies'])]
        lines += [f'  {kind}: {name}' for kind, names in s['odd'].items() for name in _some(names)]
        lines += [f'  most images are {kind}' for kind in s['usual']]
        lines += [f'  far from all others: {name}' for name in _some(list(s['outliers']))]
    if summary['leakage']:
        lines.append(f'LEAKAGE: images in two splits ({len(summary["leakage"])}):')
        lines += [f'  {one} = {other}' for one, other in summary['leakage']]
    if near := summary['near']:
        more = ' or more' if len(near) == nearness.PAIRS else ''
        lines.append(
            f'nearly the same, among {summary["compared"]:,} images ({len(near):,} pairs{more}):'
        )
        lines += [f'  {pair[0]} ~ {pair[1]}' for pair in near[:_NAMED]]
        if len(near) > _NAMED:
            lines.append(f'  … and {len(near) - _NAMED} more in summary.json')
    return '\n'.join(lines)


def _some(found: list[Any]) -> Iterator[Any]:
    """Yields the first few items, and a line with the number of the others."""
    yield from found[:_NAMED]
    if len(found) > _NAMED:
        more = f'… and {len(found) - _NAMED} more in summary.json'
        yield [more] if isinstance(found[0], list) else more


def _range(three: list[int]) -> str:
    return f'{three[0]} … {three[2]} (median {three[1]})' if three else 'unknown'


def _figures(values: list[float]) -> str:
    return '(' + ', '.join(f'{value:.4f}' for value in values) + ')'


def _open(settings: Mapping[str, Any]) -> tuple[dict[str, Source], list[str]]:
    """Returns the source of each split, and the reasons why training would refuse the data."""
    sources: dict[str, Source] = {}
    try:
        for split in SPLITS:
            with contextlib.suppress(NoSplitError):
                sources[split] = data.load(settings, split)
    except UserError as e:
        # A source stops at its first fault. Open the images that can be found, and list all faults.
        sources, faults = survey(settings)
        if not sources:
            raise UserError('; '.join(faults) or str(e)) from None
        return sources, faults if str(e) in faults else [str(e), *faults]
    if not sources:
        raise UserError(f'data.source={settings["source"]!r} has no splits')
    return sources, []


def _draw_classes(summary: dict[str, Any], path: Path) -> None:
    """Draws a stacked bar chart of the number of images of each class and split."""
    import matplotlib
    from matplotlib.figure import Figure

    # All splits have the same classes in the same order; show the first `_BARS` classes.
    names = list(next(iter(summary['splits'].values()))['classes'])
    shown = names[:_BARS]
    families = fonts.families_for(shown)
    with matplotlib.rc_context({'font.family': families}):
        figure = Figure(figsize=(max(5.0, 0.28 * len(shown) + 2), 3.6), layout='constrained')
        axes = figure.subplots()
        bottom = np.zeros(len(shown))
        for split, s in summary['splits'].items():
            counts = np.array([s['classes'].get(name, 0) for name in shown])
            axes.bar(np.arange(len(shown)), counts, bottom=bottom, label=split)
            bottom += counts
        labels = [fonts.legible(name, families, _LABEL) for name in shown]
        axes.set_xticks(np.arange(len(shown)), labels, rotation=90, fontsize=7, parse_math=False)
        axes.set_ylabel('images')
        more = f' (the first {_BARS} of {len(names)} classes)' if len(names) > _BARS else ''
        axes.set_title(f'Images per class{more}')
        figure.legend(loc='outside lower center', ncols=3)
        figure.savefig(path, dpi=120)


def draw_inputs(config: ConfigDict, count: int = _PAIRS) -> 'Figure':
    """Draws training images before augmentation, and below each image the model's input.

    Args:
      config: the whole config.
      count: the number of images, at most 24.

    Raises:
      UserError: the data cannot be opened, or the op strings do not fit them.
    """
    config = config_lib.resolve(config)
    return _draw_inputs(data.load(config.data, 'train'), loading_of(config), count)


def _draw_inputs(source: Source, loading: inputs.Loading, count: int = _PAIRS) -> 'Figure':
    import matplotlib
    from matplotlib.figure import Figure

    before, after, labels = (x[:count] for x in _pairs(source, loading))
    titles = [label_text(source.class_names, label) for label in labels]
    head = f'Training images; below each the model input, after {loading.ops}'
    # Choose fonts that have the characters of all titles.
    families = fonts.families_for([head, *titles])
    with matplotlib.rc_context({'font.family': families}):
        rows = -(-len(after) // _COLUMNS)
        figure = Figure(figsize=(1.5 * _COLUMNS, 3.3 * rows), dpi=120, layout='constrained')
        grid = figure.subplots(2 * rows, _COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        # Each row of images takes two rows of the grid: before and after augmentation.
        for i, (one, other, title) in enumerate(zip(before, after, titles, strict=True)):
            row, column = divmod(i, _COLUMNS)
            label = fonts.legible(title, families, _LABEL)
            grid[2 * row, column].set_title(label, fontsize=8, parse_math=False)
            _show(grid[2 * row, column], one)
            _show(grid[2 * row + 1, column], other)
        figure.suptitle(fonts.legible(head, families, _HEAD), fontsize=9, parse_math=False)
        return figure


def _show(axes: Any, image: np.ndarray) -> None:
    """Shows the first three channels in colour, or the first in grey if there are fewer."""
    # Augmented images are floats that may lie outside 0 … 255.
    image = np.clip(np.asarray(image, np.float32), 0, 255) / 255
    grey = image.shape[-1] < 3
    image = image[..., :3]
    axes.imshow(image[..., 0] if grey else image, cmap='gray' if grey else None, vmin=0, vmax=1)


def _pairs(source: Source, loading: inputs.Loading) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a training batch before and after augmentation, and its labels."""
    mesh = mesh_lib.make_mesh()
    loading = dataclasses.replace(loading, batch_size=-(-_PAIRS // mesh.size) * mesh.size)
    batch = next(inputs.TrainBatches(source, loading, mesh, 0))
    ids, after, labels = (np.asarray(batch[k]) for k in ('id', 'image', 'label'))
    after = after[:, 0] if after.ndim == 5 else after  # the first of several views
    if source.images is not None:
        return source.images[ids], after, labels
    from vision.preprocess import pipeline

    # The same seed and step give the same examples.
    plain = pipeline.train_batches(
        source,
        f'decode|resize({_SHOWN})' if source.encoded else f'resize({_SHOWN})',
        batch_size=loading.batch_size,
        seed=loading.seed,
        max_corrupt=loading.max_corrupt,
        repeats=loading.repeats,
    )
    return next(plain)['image'], after, labels
