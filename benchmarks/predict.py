"""Throughput of classifying files, compared with the decoder alone and the model alone."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.input import make_jpegs
from benchmarks.turns import in_turn, medians
from vision.core import mesh as mesh_lib
from vision.core.config import default_config
from vision.data.source import FileSource
from vision.evaluation.run import Run
from vision.models import create_model
from vision.models.base import init_variables, run_once
from vision.prediction.classifier import Classifier
from vision.prediction.feed import Feed
from vision.task import task_of


def predict_speed(name: str, rounds: int, images: int = 1000) -> dict[str, Any]:
    """Measures the classification of 500×375 JPEGs by a model with random weights.

    Args:
      name: a model with inputs of 224 pixels; it gets 1,000 classes.
      rounds: the number of measurements of each, in turn.
      images: the number of files.

    Returns:
      `predict`, `decoder` and `bare_model`: images/s, medians over the rounds. `of_slower`:
      `predict` over the lower of the other two rates. `of_bound`: `predict` over
      1 / (1 / decoder + 1 / bare_model), the upper bound if decoder and model share the same cores.
      `one_image_cpu_ms` and `one_image_cpu_ms_8_threads`: the CPU time of a call with one file
      minus that of the model, called by one thread and by eight threads at once.

    Raises:
      UserError: the model is unknown, or does not accept 224 pixels.
    """
    # The speed does not depend on the weights, so random weights suffice.
    run = _random_run(name)
    classifier, feed = Classifier(run), Feed(run)
    with tempfile.TemporaryDirectory() as folder:
        few = make_jpegs(Path(folder))
        source = _repeated(few, images)
        batch = next(iter(feed.source(source).batches))['image']
        model = jax.jit(classifier.probabilities)

        # Each function returns the number of images that it processed.
        def classify() -> int:
            return sum(1 for _ in classifier.classify_source(source))

        def decode() -> int:
            for _ in feed.source(source).batches:
                pass
            return images

        def compute() -> int:
            calls = -(-images // len(batch))
            for _ in range(calls):
                jax.block_until_ready(model(classifier.variables, batch))
            return calls * len(batch)

        works = {'predict': classify, 'decoder': decode, 'bare_model': compute}
        # Compile everything before the timing.
        list(classifier.classify_source(_repeated(few, 2 * len(batch))))
        jax.block_until_ready(model(classifier.variables, batch))
        rates = {name: partial(_rate, work) for name, work in works.items()}
        median = medians(in_turn(rates, rounds))
        one, eight = (_one_image(classifier, few.paths[0], threads) for threads in (1, 8))
    # With separate cores the slower half sets the limit; with shared cores their times add up.
    slower = min(median['decoder'], median['bare_model'])
    bound = 1 / (1 / median['decoder'] + 1 / median['bare_model'])
    predict = median['predict']
    return {
        'model': name,
        **median,
        'of_slower': predict / slower,
        'of_bound': predict / bound,
        'one_image_cpu_ms': one,
        'one_image_cpu_ms_8_threads': eight,
    }


def _one_image(classifier: Classifier, path: str, threads: int, calls: int = 64) -> float:
    """Returns the CPU time of a call with one file minus that of the model alone, in ms."""
    model = jax.jit(classifier.probabilities)
    fed = np.zeros((1, *classifier.run.input_shape), np.uint8)

    def bare(_: int) -> Any:
        return jax.block_until_ready(model(classifier.variables, fed))

    # CPU time, unlike wall time, does not depend on the load of the machine.
    taken = []
    with ThreadPoolExecutor(threads) as pool:
        for work in (lambda _: classifier(path), bare):
            work(0)  # compile first
            begin = time.process_time()
            list(pool.map(work, range(calls)))
            taken.append(time.process_time() - begin)
    return 1e3 * (taken[0] - taken[1]) / calls


def _rate(work: Callable[[], int]) -> float:
    """Returns the images/s of a function that returns the number of images it processed."""
    begin = time.perf_counter()
    return work() / (time.perf_counter() - begin)


def _random_run(name: str) -> Run:
    """Returns a run of a model with random weights, as if it had been loaded from a workdir."""
    config = default_config()
    config.preprocess.eval = 'decode|resize_small(256)|central_crop(224)'
    config.evaluation.batch_size = 32
    names, shape, mesh = tuple(map(str, range(1000))), (224, 224, 3), mesh_lib.make_mesh()
    model = create_model(name, num_classes=len(names))
    variables = run_once(lambda: init_variables(model, shape, jax.random.key(0)))
    return Run(
        path=Path('benchmark'),
        config=config,
        class_names=names,
        image_shape=None,
        input_shape=shape,
        step=0,
        model=model,
        task=task_of(config, names, len(names)),
        variables=mesh_lib.put_replicated(variables, mesh),
        mesh=mesh,
    )


def _repeated(source: FileSource, count: int) -> FileSource:
    paths = (source.paths * -(-count // len(source.paths)))[:count]
    return FileSource('files', (), paths, np.full(count, -1))
