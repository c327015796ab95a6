"""Cost of growth: curves of speed and time over the size of what is computed, on one page.

Every point runs in its own process and is kept, so that a stopped benchmark continues.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import throughput
from benchmarks.turns import Store, python, run_process

Values = dict[str, float]

_POINT = """
from benchmarks.growth import point
print(point(sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'quick'))
"""


class Curve(NamedTuple):
    """One measurement over a size.

    Attributes:
      title: what grows and what is measured.
      x, y: labels of the axes.
      sizes: the measured sizes, and those of a quick check.
      quick: the sizes of a quick check.
      measure: returns the values at one size by the name of their line.
    """

    title: str
    x: str
    y: str
    sizes: Sequence[int]
    quick: Sequence[int]
    measure: Callable[[int], Values]


def by_batch(size: int) -> Values:
    """Returns the images/s of ResNet-20 on 32 pixels for a batch size."""
    return {mode: _rate(mode, 'resnet20', size, None) for mode in ('train', 'infer')}


def by_classes(number: int) -> Values:
    """Returns the training steps/s of ResNet-18 on 64 pixels and batches of 16."""
    return {'ResNet-18, 64 px, batch 16': _rate('train', 'resnet18', 16, number, 64) / 16}


def by_examples(number: int) -> Values:
    """Returns the seconds of evaluating LeNet-5 on images of 28 pixels in memory.

    Compilation is not included.
    """
    import jax

    from benchmarks.loop import plain_recipe, synthetic_config
    from vision.core import mesh as mesh_lib
    from vision.data.arrays import synthetic
    from vision.evaluation.answers import Member, answer, make_step
    from vision.models import create_model
    from vision.models.base import init_variables, run_once
    from vision.preprocess.inputs import EvalBatches
    from vision.task.metrics import figures

    # An untrained model of the registry, with the usual task.
    model = create_model('lenet5', num_classes=10, padding=2)
    task, mesh = plain_recipe(synthetic_config('lenet5', 28, 100), model).task, mesh_lib.make_mesh()
    variables = run_once(lambda: init_variables(model, (28, 28, 1), jax.random.key(0)))
    source, step = synthetic('test', number, 10, 28, 1), make_step(task, model, mesh)
    variables = mesh_lib.put_replicated(variables, mesh)

    def seconds() -> float:
        began = time.perf_counter()
        batches = EvalBatches(source, '', 1000, mesh)
        figures(task, answer(task, [Member(step, variables, batches)], number))
        return time.perf_counter() - began

    # The first pass compiles.
    return {'LeNet-5, 28 px': min(seconds(), seconds())}


def by_vectors(number: int) -> Values:
    """Returns the milliseconds of a query for 10 neighbours among vectors of 384 floats."""
    from benchmarks.search import clusters, search_speed

    kinds = search_speed(clusters(number), number, ('exact', 'ivfpq'), (1,), 1)['kinds']
    return {row['kind']: row['ms'] for row in kinds}


def by_depth(depth: int) -> Values:
    """Returns the seconds from process start to the first step of a ResNet for CIFAR."""
    from benchmarks.startup import first_step

    cold, warm = first_step(f'resnet{depth}', 32, 32)
    return {'no compilation cache': cold.seconds, 'with cache': warm.seconds}


def by_files(number: int) -> Values:
    """Returns the seconds of listing a folder of classes with 1,000 files each."""
    from vision.data import load

    with tempfile.TemporaryDirectory() as root:
        for i in range(number):
            folder = Path(root) / f'class{i // 1000}'
            if i % 1000 == 0:
                folder.mkdir()
            (folder / f'{i}.jpg').touch()
        began = time.perf_counter()
        load({'source': 'folder', 'path': root}, 'train')
        return {'source folder, one split': time.perf_counter() - began}


CURVES: dict[str, Curve] = {
    'batch': Curve(
        'Speed by batch size',
        'images in a batch',
        'images/s',
        [1, 4, 16, 64, 256, 1024],
        [4, 16],
        by_batch,
    ),
    'classes': Curve(
        'Training by classes',
        'classes',
        'steps/s',
        [10, 100, 1000, 5000, 21841],
        [10, 1000],
        by_classes,
    ),
    'examples': Curve(
        'Evaluation by examples',
        'examples',
        'seconds',
        [10**3, 10**4, 10**5, 10**6],
        [1000, 5000],
        by_examples,
    ),
    'vectors': Curve(
        'Search by vectors',
        'vectors',
        'ms per query',
        [10**4, 31623, 10**5, 316228, 10**6],
        [2000, 8000],
        by_vectors,
    ),
    'depth': Curve(
        'Start-up by depth', 'layers', 'seconds', [20, 32, 44, 56, 110], [20, 32], by_depth
    ),
    'files': Curve(
        'Listing by files', 'files', 'seconds', [10**3, 10**4, 10**5, 10**6], [1000, 4000], by_files
    ),
}


def growth(output: Path, quick: bool = False) -> list[dict[str, Any]]:
    """Measures all curves and draws them on one page.

    Args:
      output: folder of the readings and of the page, `growth.png` and `growth.svg`.
      quick: measure a few small sizes, to see that it runs.

    Returns:
      One row for each line: `curve`, `line`, `sizes` and `values`, the `slope` of the line that fits
      the logarithms, and `first` and `last`, the slopes of its first and last part, which differ
      where the line bends.
    """
    store, mode, rows = Store(output), 'quick' if quick else 'full', []
    for name, curve in CURVES.items():
        lines: dict[str, list[float]] = {}
        sizes = curve.quick if quick else curve.sizes
        for size in sizes:
            words = [name, str(size), mode]
            values = store.get(words, partial(run_process, [*python(_POINT), *words]))
            for line, value in values.items():
                lines.setdefault(line, []).append(value)
                print(f'{name} {size:,}: {line} {value:,.4g}', file=sys.stderr, flush=True)
        for line, found in lines.items():
            slopes = np.diff(np.log(found)) / np.diff(np.log(sizes))
            rows.append(
                {
                    'curve': name,
                    'line': line,
                    'slope': float(np.polyfit(np.log(sizes), np.log(found), 1)[0]),
                    'first': float(slopes[0]),
                    'last': float(slopes[-1]),
                    'sizes': list(sizes),
                    'values': found,
                }
            )
    figure = _draw(rows)
    for ending in ('png', 'svg'):
        figure.savefig(output / f'growth.{ending}')
    return rows


def point(name: str, size: int, quick: bool) -> str:
    """Measures one point in this process and returns its values as JSON."""
    if quick:
        throughput._SECONDS = 0.0
    return json.dumps(CURVES[name].measure(size))


def _rate(mode: Any, model: str, batch: int, num_classes: int | None, size: int = 32) -> float:
    found = throughput.measure(mode, model, 'float32', size, 3, batch, num_classes)
    return json.loads(found)['rate']


def _draw(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Returns a figure with the lines of each curve on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), dpi=110, layout='constrained')
    axes: Iterator[Any] = iter(figure.subplots(2, 3).flat)
    for (name, curve), axis in zip(CURVES.items(), axes, strict=True):
        for row in rows:
            if row['curve'] == name:
                label = f'{row["line"]}: slope {row["slope"]:.2f}'
                axis.loglog(row['sizes'], row['values'], 'o-', label=label)
        axis.set(title=curve.title, xlabel=curve.x, ylabel=curve.y)
        axis.set_xticks(curve.sizes, [f'{size:,}' for size in curve.sizes], fontsize='small')
        axis.minorticks_off()
        axis.grid(True, which='major', alpha=0.3)
        axis.legend(frameon=False)
    return figure
