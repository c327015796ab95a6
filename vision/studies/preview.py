"""Pictures of what the model is fed, and a summary of the data: before hours are spent on it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vision import data
from vision.core import config as config_lib
from vision.core import mesh as mesh_lib
from vision.core import strict_json
from vision.core.errors import UserError
from vision.data.folder import SPLITS
from vision.data.source import NoSplitError, Source, label_text
from vision.preprocess import inputs
from vision.studies.inspect import describe
from vision.training.setup import loading_of

_COLUMNS = 8
_PAIRS = 24  # images shown, before and after
_BARS = 60  # classes in the chart; more are not legible
_SHOWN = 160  # pixels of the pictures before augmentation


def preview(config: ConfigDict, output: str) -> dict[str, Any]:
    """Writes `inputs.png`, `classes.png` and `summary.json`.

    Args:
      config: the whole config.
      output: a folder, made if it is not there.

    Returns:
      What `vision.studies.inspect.describe` says, which is also in `summary.json`.

    Raises:
      UserError: no split of the data can be opened, or the op strings do not fit.
    """
    config = config_lib.resolve(config)
    # It is here that one learns what cannot be read.
    loading = dataclasses.replace(loading_of(config), max_corrupt=1.0)
    sources = _open(config.data)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    summary = describe(sources)
    # A name that is not UTF-8 is written as far as it can be.
    (folder / 'summary.json').write_text(
        strict_json.dumps(summary, indent=2, ensure_ascii=False), 'utf-8', 'backslashreplace'
    )
    _draw_classes(summary, folder / 'classes.png')
    _draw_inputs(next(iter(sources.values())), loading, folder / 'inputs.png')
    return summary


def text(summary: dict[str, Any]) -> str:
    """The summary in words."""
    lines = []
    for split, s in summary['splits'].items():
        counts = s['classes'].values()
        lines += [
            f'{split}: {s["examples"]:,} images, {len(s["classes"])} classes of '
            f'{min(counts, default=0):,} to {max(counts, default=0):,}',
            f'  height {_range(s["height"])}, width {_range(s["width"])}',
            f'  mean {_figures(s["mean"])}, standard deviation {_figures(s["std"])}',
        ]
        lines += [f'  class {name!r} has no images' for name, n in s['classes'].items() if not n]
        lines += [f'  cannot be read: {name}: {why}' for name, why in s['unreadable'].items()]
    if summary['leakage']:
        lines.append(f'LEAKAGE: {len(summary["leakage"])} images are in two splits:')
        lines += [f'  {one} = {other}' for one, other in summary['leakage']]
    return '\n'.join(lines)


def _range(three: list[int]) -> str:
    return f'{three[0]} … {three[2]} (median {three[1]})' if three else 'unknown'


def _figures(values: list[float]) -> str:
    return '(' + ', '.join(f'{value:.4f}' for value in values) + ')'


def _open(settings: Mapping[str, Any]) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for split in SPLITS:
        try:
            sources[split] = data.load(settings, split)
        except NoSplitError:
            continue
    if not sources:
        raise UserError(f'data.source={settings["source"]!r} has no split')
    return sources


def _draw_classes(summary: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(next(iter(summary['splits'].values()))['classes'])
    shown = names[:_BARS]
    figure = Figure(figsize=(max(5.0, 0.28 * len(shown) + 2), 3.6), layout='constrained')
    axes = figure.subplots()
    bottom = np.zeros(len(shown))
    for split, s in summary['splits'].items():
        counts = np.array([s['classes'].get(name, 0) for name in shown])
        axes.bar(np.arange(len(shown)), counts, bottom=bottom, label=split)
        bottom += counts
    axes.set_xticks(np.arange(len(shown)), shown, rotation=90, fontsize=7)
    axes.set_ylabel('images')
    more = f'; the first {_BARS} of {len(names)} classes' if len(names) > _BARS else ''
    axes.set_title(f'Images of each class{more}')
    figure.legend(loc='outside lower center', ncols=3)
    figure.savefig(path, dpi=120)


def _draw_inputs(source: Source, loading: inputs.Loading, path: Path) -> None:
    """Draws pairs: an image as it is, and below it as the model is fed it in training."""
    from matplotlib.figure import Figure

    before, after, labels = _pairs(source, loading)
    rows = -(-len(after) // _COLUMNS)
    figure = Figure(figsize=(1.5 * _COLUMNS, 3.3 * rows), layout='constrained')
    grid = figure.subplots(2 * rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (one, other, label) in enumerate(zip(before, after, labels, strict=True)):
        row, column = divmod(i, _COLUMNS)
        grid[2 * row, column].set_title(label_text(source.class_names, label)[:20], fontsize=8)
        _show(grid[2 * row, column], one)
        _show(grid[2 * row + 1, column], other)
    figure.suptitle(f'{source.name}, and below it after {loading.ops}', fontsize=9)
    figure.savefig(path, dpi=120)


def _show(axes: Any, image: np.ndarray) -> None:
    """Shows the first three channels as colours, or the first one as grey if there are fewer."""
    image = np.clip(np.asarray(image, np.float32), 0, 255) / 255
    grey = image.shape[-1] < 3
    image = image[..., :3]
    axes.imshow(image[..., 0] if grey else image, cmap='gray' if grey else None, vmin=0, vmax=1)


def _pairs(source: Source, loading: inputs.Loading) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first training batch before and after augmentation, and its labels."""
    mesh = mesh_lib.make_mesh()
    loading = dataclasses.replace(loading, batch_size=-(-_PAIRS // mesh.size) * mesh.size)
    batch = next(inputs.TrainBatches(source, loading, mesh, 0))
    ids, after, labels = (np.asarray(batch[k]) for k in ('id', 'image', 'label'))
    after = after[:, 0] if after.ndim == 5 else after  # the first of several views
    if source.images is not None:
        return source.images[ids], after, labels
    from vision.preprocess import pipeline

    # The same seed and step: the same examples.
    plain = pipeline.train_batches(
        source,
        f'decode|resize({_SHOWN})' if source.encoded else f'resize({_SHOWN})',
        batch_size=loading.batch_size,
        seed=loading.seed,
        max_corrupt=loading.max_corrupt,
        repeats=loading.repeats,
    )
    return next(plain)['image'], after, labels
