"""Searches by image: finds nearest images and near-duplicates, and evaluates the model's features.

    python -m experiments.search COMMAND --workdir=DIR|--pretrained=SOURCE [--index=FILE] [PATH…]

    build PATH…       describe images (or --split of the run's data) and write them into a new index
    add PATH…         add images to an index
    query IMAGE…      find the nearest images in the index, or in --split, which is described first
    duplicates        find images in the index that are nearly the same
    evaluate          measure how well features tell the classes of --split apart (without an index)

Examples:
    python -m experiments.search build photos/ --workdir=runs/photos --index=photos.index
    python -m experiments.search query cat.jpg --workdir=runs/photos --index=photos.index --top_k=5

A PATH or IMAGE is a file, a folder, a glob, or an example of the run's own data, SPLIT:NUMBER, such
as test:12. Exit code 3: some images could not be read.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from vision.core import cli
from vision.core.errors import UserError, unknown
from vision.core.progress import phase, track
from vision.core.text import PICTURES, json_text, output_file

cli.heading('The model that describes the images')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "The run's checkpoint: best, last or a step."
)
PRETRAINED = flags.DEFINE_string(
    'pretrained', None, 'Weights to use instead of a run; see experiments.predict.'
)
MODEL = flags.DEFINE_string('model', None, 'Model of --pretrained, where the weights do not tell.')
ENDPOINT = flags.DEFINE_string(
    'endpoint', None, 'Output that describes an image: features (default), logits or a stage.'
)
cli.heading('The index')
INDEX = flags.DEFINE_string('index', None, 'File of the index.')
SPLIT = flags.DEFINE_string(
    'split', None, "A split of the run's own data, instead of PATHs or in addition to them."
)
METRIC = flags.DEFINE_enum(
    'metric',
    'cosine',
    ['cosine', 'euclidean'],
    'Similarity or distance that neighbours are ranked by.',
)
HNSW = flags.DEFINE_bool('hnsw', False, 'Build an approximate index, for 100,000 images and more.')
cli.heading('The answers')
TOP_K = flags.DEFINE_integer('top_k', 10, 'Number of neighbours that query finds.', lower_bound=1)
THRESHOLD = flags.DEFINE_float(
    'threshold', 0.95, 'Least cosine between images that may be duplicates.'
)
OUTPUT = flags.DEFINE_string(
    'output', None, 'File for the pictures of query and duplicates, .html or .png.'
)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the answers are printed.')


def main(argv: list[str]) -> int:
    """Runs the command that the first word names."""
    if (WORKDIR.value is None) == (PRETRAINED.value is None):
        raise UserError('give either --workdir=DIR or --pretrained=SOURCE; see --help')
    if len(argv) < 2 or argv[1] not in COMMANDS:
        known = ', '.join(COMMANDS)
        raise (
            UserError(f'say what to do: {known}')
            if len(argv) < 2
            else unknown('command', argv[1], COMMANDS)
        )
    with phase('starting'):
        import vision.search.search  # noqa: F401
    return COMMANDS[argv[1]](argv[2:])


def _build(words: list[str]) -> int:
    from vision.search import index, search

    path = _index_path()
    _require_images(words)
    index.check_replaceable(path)
    classifier = _classifier()
    made, failed = search.build(
        classifier, _images(classifier, words), _endpoint(), METRIC.value, HNSW.value
    )
    with phase('writing the index'):
        made.save(path)
        recall = {'recall@10': made.recall()} if made.approximate else {}
    return _tell_built(made, len(made.names), failed, recall)


def _add(words: list[str]) -> int:
    from vision.search import search

    path = _index_path()
    _require_images(words)
    made, classifier = _load(path), _classifier()
    made.check(classifier, ENDPOINT.value)
    before = len(made.names)
    failed = search.add(classifier, made, _images(classifier, words))
    with phase('writing the index'):
        made.save(path)
    return _tell_built(made, len(made.names) - before, failed, {})


def _query(words: list[str]) -> int:
    from vision.search import search

    if not words:
        raise UserError('name at least one image to look for')
    output = _output_path()
    if INDEX.value is None and SPLIT.value is None:
        raise UserError('--index=FILE, or --split of the run to look in, is missing; see --help')
    classifier = _classifier()
    asked = search.named(classifier.run, words)
    if INDEX.value is not None:
        made = _load(Path(INDEX.value).expanduser())
        made.check(classifier, ENDPOINT.value)
    else:
        where = [search.whole_split(classifier.run, SPLIT.value)]
        made, _ = search.build(classifier, where, _endpoint(), METRIC.value, HNSW.value)
    total = sum(some.source.num_examples for some in asked)
    results = list(track(search.query(classifier, made, asked, TOP_K.value), total, 'searching'))
    return _tell_found(results, made.metric, classifier, output, 'Nearest images')


def _duplicates(words: list[str]) -> int:
    from vision.search import duplicates

    cli.refuse_arguments(['', *words])
    output = _output_path()
    cli.require(index=INDEX.value)
    made, classifier = _load(Path(INDEX.value).expanduser()), _classifier()
    made.check(classifier, ENDPOINT.value)
    results = duplicates.find_duplicates(made, classifier.run, THRESHOLD.value)
    title = 'Images that are nearly the same'
    return _tell_found(results, 'cosine', classifier, output, title)


def _evaluate(words: list[str]) -> int:
    from vision.search import features

    cli.refuse_arguments(['', *words])
    figures = features.judge_run(_classifier(), SPLIT.value or 'test', _endpoint())
    _print(figures)
    return 0


def _index_path() -> Path:
    cli.require(index=INDEX.value)
    return output_file('index', INDEX.value)


def _endpoint() -> str:
    return ENDPOINT.value or 'features'


def _output_path() -> Path | None:
    return output_file('output', OUTPUT.value, PICTURES) if OUTPUT.value else None


def _load(path: Path) -> Any:
    from vision.search import index

    with phase('reading the index'):
        return index.load(path)


def _classifier() -> Any:
    from vision.prediction import Classifier

    with phase('reading the model'):
        if PRETRAINED.value is not None:
            return Classifier.from_pretrained(PRETRAINED.value, MODEL.value, classify=False)
        return Classifier.from_workdir(WORKDIR.value, CHECKPOINT.value)


def _require_images(words: list[str]) -> None:
    if not words and SPLIT.value is None:
        raise UserError('name files, folders or globs, or a --split of the run')


def _images(classifier: Any, words: list[str]) -> list[Any]:
    from vision.search import search

    split = [search.whole_split(classifier.run, SPLIT.value)] if SPLIT.value else []
    return split + search.named(classifier.run, words)


def _tell_built(made: Any, count: int, failed: dict[str, str], more: dict[str, Any]) -> int:
    for path, reason in failed.items():
        print(f'{path} cannot be read: {reason}', file=sys.stderr)
    about = {'index': INDEX.value, 'images': len(made.names), 'new': count, 'metric': made.metric}
    kind = 'hnsw' if made.approximate else 'exact'
    errors = [{'path': p, 'error': e} for p, e in failed.items()]
    extra = {'failed': errors} if FORMAT.value == 'json' else {'failed': len(failed)}
    _print({**about, 'endpoint': made.made_by['endpoint'], 'kind': kind, **more, **extra})
    return cli.ANSWERED_IN_PART if failed else 0


def _tell_found(
    results: list[dict[str, Any]], metric: str, classifier: Any, output: Path | None, title: str
) -> int:
    from vision.prediction import formats
    from vision.search import search

    if FORMAT.value == 'json':
        print(formats.dump_json(results, sys.stdout, indent=2))
    else:
        formats.write_neighbours(results, sys.stdout)
    if output is not None:
        with phase('writing the pictures'):
            search.write_results(classifier.run, results, metric, output, title=title)
        print(f'Pictures: {output}', file=sys.stderr)
    return cli.ANSWERED_IN_PART if any('error' in r for r in results) else 0


def _print(figures: dict[str, Any]) -> None:
    if FORMAT.value == 'json':
        print(json_text(figures))
        return
    for name, value in figures.items():
        print(f'{name:>12}  {value:.4f}' if isinstance(value, float) else f'{name:>12}  {value}')


COMMANDS = {
    'build': _build,
    'add': _add,
    'query': _query,
    'duplicates': _duplicates,
    'evaluate': _evaluate,
}

if __name__ == '__main__':
    cli.run(main)
