"""Searches by image: finds nearest images and near-duplicates, and evaluates the model's features.

    python -m experiments.search COMMAND --workdir=DIR|--pretrained=SOURCE [--index=FILE] [PATH…]

    describe PATH…    write vectors and properties of images into the folder --output, as Parquet
                      shards; a second run continues, and describes new and changed images
    build PATH…       describe images (or --split of the run's data) and write a new index; a PATH
                      may be a folder of shards, which needs no model
    add PATH…         add images to an index
    replace PATH…     add images to an index, and replace those that are already in it
    remove PATH…      remove files and folders from an index; needs no model
    verify            read every byte of an index and compare it with its checksum; needs no model
    query IMAGE…      find the nearest images in the index, or in --split, which is described first
    duplicates        find copies of images in the index, whole or in part, or between --index and
                      --against
    evaluate          measure how well features separate the classes of --split (without an index);
                      with --copies PATH… how well copies of photos are found; with --truth=FILE
                      --index=FILE IMAGE… how well the index answers queries of known references

Examples:
    python -m experiments.search describe photos/ --workdir=runs/photos --output=photos.shards
    python -m experiments.search build photos/ --workdir=runs/photos --index=photos.index
    python -m experiments.search query cat.jpg --workdir=runs/photos --index=photos.index --top_k=5
    python -m experiments.search evaluate --copies photos/ --pretrained=efficientnet_lite0

A PATH or IMAGE is a file, a folder, a glob, or an example of the run's own data, SPLIT:NUMBER, such
as test:12. Exit code 3: some images could not be read.
"""

import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

from vision.core import cli
from vision.core.errors import UserError, unknown
from vision.core.progress import phase, track
from vision.core.text import PICTURES, as_path, figures_text, json_text, output_file
from vision.prediction.model_flags import ModelFlags

cli.heading('The model that describes the images')
MODEL = ModelFlags()
ENDPOINT = flags.DEFINE_string(
    'endpoint',
    None,
    'Output that describes an image: features (default), logits, a stage, or STAGE:gem.',
)
cli.heading('The index')
INDEX = flags.DEFINE_string(
    'index', None, 'File of the index, or milvus:FILE.db, milvus:http://HOST:PORT.'
)
SPLIT = flags.DEFINE_string(
    'split', None, "A split of the run's own data, instead of PATHs or in addition to them."
)
METRIC = flags.DEFINE_enum(
    'metric',
    'cosine',
    ['cosine', 'euclidean'],
    'Similarity or distance that neighbours are ranked by.',
)
DISTRIBUTED = flags.DEFINE_bool(
    'distributed',
    False,
    'Share the work of describe with other processes that run the same command.',
)
KIND = flags.DEFINE_enum(
    'kind',
    'exact',
    ['exact', 'hnsw', 'ivfpq'],
    'Kind of the index: exact, or approximate from 100,000 images (hnsw) or a million (ivfpq).',
)
HNSW = flags.DEFINE_bool('hnsw', False, 'The old name of --kind=hnsw.')
FIELDS = flags.DEFINE_string(
    'fields', None, 'CSV file with fields of the images for --where, by its column path.'
)
WHITEN = flags.DEFINE_integer(
    'whiten', 0, 'Project the vectors onto so many principal components and whiten them.', 0
)
cli.heading('The answers')
BOX = flags.DEFINE_string(
    'box',
    None,
    'Part of each query to look for: x,y,width,height in pixels of the upright picture.',
)
TOP_K = flags.DEFINE_integer('top_k', 10, 'Number of neighbours that query finds.', lower_bound=1)
WHERE = flags.DEFINE_string(
    'where', None, 'Condition on what query finds: "class=\'cat\' and width>800".'
)
VIEWS = flags.DEFINE_enum(
    'views',
    'one',
    ['one', 'flip', 'scales', 'all'],
    'Views of a query whose vectors are averaged: mirrored, at three scales, or both.',
)
BACKGROUND = flags.DEFINE_string(
    'background', None, 'Index of other images, with which scores of query are normalized.'
)
THRESHOLD = flags.DEFINE_float(
    'threshold', 0.95, 'Least cosine between images that may be duplicates.'
)
AGAINST = flags.DEFINE_string(
    'against', None, 'Another index of the same model: duplicates between the two only.'
)
BITS = flags.DEFINE_integer(
    'bits', 8, 'Most different bits of the perceptual hashes of candidates, 0 to 11; -1: no hashes.'
)
NEIGHBOURS = flags.DEFINE_integer(
    'neighbours', 10, 'Number of nearest images by their vectors that are candidates.'
)
INLIERS = flags.DEFINE_integer(
    'inliers',
    5,
    'Least number of matched points of a copy, times the square of --agreement of the two; 0 compares'
    ' thumbnails only.',
)
AGREEMENT = flags.DEFINE_float(
    'agreement', 0.5, 'Least fraction of what two images share where their pixels agree.'
)
KEEP = flags.DEFINE_enum(
    'keep', 'largest', ['largest', 'oldest'], 'Which file of a group of duplicates to keep.'
)
DELETABLE = flags.DEFINE_string(
    'deletable', None, 'File for the list of files that could be deleted, .csv or .json.'
)
EXPLAIN = flags.DEFINE_string(
    'explain', None, 'File for the pairs of duplicates with their matched points, .html or .png.'
)
OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'Folder of the shards of describe, or file for the pictures of query and duplicates, .html or .png.',
)
FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json'], 'How the answers are printed.')
cli.heading('Evaluation')
COPIES = flags.DEFINE_bool('copies', False, 'Evaluate how well copies of the photos are found.')
EACH = flags.DEFINE_integer(
    'each', 50, 'Photos of the collection, and other photos, that a transformation copies.', 1
)
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the copies, and of what is in the collection.', 0)
VERIFY = flags.DEFINE_bool('verify', True, 'With --copies: verify as duplicates does.')
TRUTH = flags.DEFINE_string(
    'truth', None, 'File with the references of each query; see --protocol.'
)
PROTOCOL = flags.DEFINE_enum(
    'protocol',
    'disc',
    ['disc', 'oxford'],
    "Form of --truth: DISC21's CSV of pairs, or gnd_roxford5k.pkl with easy, medium and hard.",
)


def main(argv: list[str]) -> int:
    """Runs the command that the first word names."""
    if len(argv) < 2 or argv[1] not in COMMANDS:
        known = ', '.join(COMMANDS)
        raise (
            UserError(f'say what to do: {known}')
            if len(argv) < 2
            else unknown('command', argv[1], COMMANDS)
        )
    if HNSW.value:
        if KIND.present and KIND.value != 'hnsw':
            raise UserError(f'--hnsw is --kind=hnsw now, and contradicts --kind={KIND.value}')
        print('warning: --hnsw is --kind=hnsw now', file=sys.stderr)
    command, words = argv[1], argv[2:]
    copies = ' --copies' if VERIFY.value else ' --copies --noverify'
    mode = copies if COPIES.value else ' --truth' if TRUTH.value is not None else ''
    cli.refuse_options(command + mode * (command == 'evaluate'), _OPTIONS)
    # Removing images and indexing shards need no model; the other commands need one.
    without = command in ('remove', 'verify') or (
        command in ('build', 'add', 'replace') and _of_shards(words) is not None
    )
    MODEL.check(required=not without)
    with phase('starting'):
        import vision.search.search  # noqa: F401
    return COMMANDS[command](words)


def _describe(words: list[str]) -> int:
    from vision.search import describing

    cli.require(output=OUTPUT.value)
    _require_images(words)
    classifier = _classifier()
    found = describing.describe(
        classifier, _images(classifier, words), OUTPUT.value, _endpoint(), DISTRIBUTED.value
    )
    errors = found.pop('errors')
    _tell_failed(errors)
    _print({'output': OUTPUT.value, **found})
    return cli.ANSWERED_IN_PART if found['failed'] else 0


def _build(words: list[str]) -> int:
    from vision.search import building, fields, index, naming

    path = _index_path()
    _require_images(words)
    place = INDEX.value if naming.in_milvus(INDEX.value) else None
    if place is None:
        index.check_replaceable(path)
    own = fields.Own(FIELDS.value) if FIELDS.value else None
    classifier, images = _classifier_and_images(words)
    made, failed = building.build(
        classifier, images, _endpoint(), METRIC.value, _kind(), own, place, WHITEN.value
    )
    with phase('writing the index'):
        made.save(path)
        recall = made.recall() if made.approximate else None
    return _tell_built(made, len(made), failed, {} if recall is None else {'recall@10': recall})


def _add(words: list[str], replace: bool = False) -> int:
    from vision.search import building, fields

    path = _index_path()
    _require_images(words)
    made = _open(path)
    classifier, images = _classifier_and_images(words)
    if classifier is not None:
        made.check(classifier, ENDPOINT.value)
    before, own = len(made), fields.Own(FIELDS.value) if FIELDS.value else None
    failed = building.add(classifier, made, images, replace, own)
    with phase('writing the index'):
        made.save(path)
    return _tell_built(made, len(made) - before, failed, {})


def _replace(words: list[str]) -> int:
    return _add(words, replace=True)


def _remove(words: list[str]) -> int:
    from vision.search import building

    path = _index_path()
    if not words:
        raise UserError('name files or folders to remove')
    made = _open(path)
    removed = building.remove(made, words)
    with phase('writing the index'):
        made.save(path)
    _print({'index': INDEX.value, 'images': len(made), 'removed': removed})
    return 0


def _verify(words: list[str]) -> int:
    from vision.search import index, naming

    cli.refuse_arguments(['', *words])
    cli.require(index=INDEX.value)
    if naming.in_milvus(INDEX.value):
        raise UserError(f'--index={INDEX.value}: only an index in a file can be verified')
    with phase('reading the index'):
        count = index.verify(INDEX.value)
    _print({'index': INDEX.value, 'images': count})
    return 0


def _query(words: list[str]) -> int:
    from vision.search import building, naming, search

    if not words:
        raise UserError('name at least one image to look for')
    options, output = _options(), _output_path()
    if INDEX.value is None and SPLIT.value is None:
        raise UserError('--index=FILE, or --split of the run to look in, is missing; see --help')
    if INDEX.value is not None and SPLIT.value is not None:
        raise UserError('give either --index=FILE or --split of the run to look in, not both')
    classifier = _classifier()
    asked = naming.named(classifier.run, words)
    total = sum(some.source.num_examples for some in asked)
    # Load the index, or build one of the split in memory.
    if INDEX.value is not None:
        classifier.expect(total)
        made = _open(INDEX.value, read_only=True)
        made.check(classifier, ENDPOINT.value)
    else:
        whole = [naming.whole_split(classifier.run, SPLIT.value)]
        made, _ = building.build(
            classifier, whole, _endpoint(), METRIC.value, _kind(), whiten=WHITEN.value
        )
    found = search.query(classifier, made, asked, TOP_K.value, **options)
    results = list(track(found, total, 'searching'))
    return _tell_found(results, made.metric, classifier, output, 'Nearest images')


def _duplicates(words: list[str]) -> int:
    from vision.search import duplicates, explaining, groups

    cli.refuse_arguments(['', *words])
    output = _output_path()
    explain = output_file('explain', EXPLAIN.value, PICTURES) if EXPLAIN.value else None
    if DELETABLE.value:
        output_file('deletable', DELETABLE.value, groups.LISTS)
    cli.require(index=INDEX.value)
    limits = _limits()
    made = [_open(path, True) for path in (INDEX.value, AGAINST.value) if path is not None]
    classifier = _classifier()
    for some in made:
        some.check(classifier, ENDPOINT.value or made[0].made_by['endpoint'])
    pairs = duplicates.find_pairs(made[0], classifier.run, limits, *made[1:])
    results = groups.groups_of(pairs, KEEP.value)
    if DELETABLE.value:
        groups.write_deletable(results, DELETABLE.value)
        count = sum(len(group['delete']) for group in results)
        print(f'List of {count:,} files that could be deleted: {DELETABLE.value}', file=sys.stderr)
    if explain is not None:
        with phase('drawing the matched points'):
            explaining.write_explanation(classifier.run, pairs, results, explain)
        print(f'Matched points: {explain}', file=sys.stderr)
    title = 'Images that are nearly the same'
    return _tell_found(results, 'copies', classifier, output, title)


def _evaluate(words: list[str]) -> int:
    from vision.search import features

    if COPIES.value:
        return _evaluate_copies(words)
    if TRUTH.value is not None:
        return _evaluate_truth(words)
    cli.refuse_arguments(['', *words])
    _print(features.judge_run(_classifier(), SPLIT.value or 'test', _endpoint()))
    return 0


def _evaluate_truth(words: list[str]) -> int:
    from vision.search import judging, truth

    _require_images(words)
    cli.require(index=INDEX.value)
    oxford = PROTOCOL.value == 'oxford'
    if oxford and BOX.value is not None:
        raise UserError('leave out --box: --protocol=oxford takes the boxes of --truth')
    given: Any = truth.read_oxford(TRUTH.value) if oxford else truth.read_pairs(TRUTH.value)
    options, made, classifier = _options(), _open(INDEX.value, True), _classifier()
    made.check(classifier, ENDPOINT.value)
    judge: Any = judging.judge_oxford if oxford else judging.judge_pairs
    _print(judge(classifier, made, _images(classifier, words), given, **options))
    return 0


def _evaluate_copies(words: list[str]) -> int:
    from vision.search import judging

    _require_images(words)
    classifier = _classifier()
    photos, failed = judging.read_photos(_images(classifier, words), SEED.value)
    code = _tell_failed(failed)
    about = judging.Descriptor(classifier, _endpoint()), VIEWS.value, WHITEN.value
    if VERIFY.value:
        method = judging.by_detector(*about, _limits())
    else:
        method = judging.by_vectors(*about, _options()['background'])
    _print(judging.judge_copies(method, photos, SEED.value, EACH.value))
    return code


def _limits() -> Any:
    """Returns the thresholds of the detection of copies."""
    from vision.search import copies

    return copies.Limits(
        BITS.value, NEIGHBOURS.value, THRESHOLD.value, INLIERS.value, AGREEMENT.value
    )


def _options() -> dict[str, Any]:
    """Returns the options of `vision.search.query`."""
    from vision.search import index, naming

    background = index.load(BACKGROUND.value, True) if BACKGROUND.value else None
    box = naming.parse_box(BOX.value) if BOX.value is not None else None
    return {'where': WHERE.value, 'box': box, 'views': VIEWS.value, 'background': background}


def _of_shards(words: list[str]) -> Path | None:
    """Returns the folder of shards that the words name, if they name one."""
    if SPLIT.value is not None or len(words) != 1:
        return None
    # Look before the import, which takes seconds.
    if not os.path.isfile(as_path(words[0]) / 'manifest.json'):
        return None
    from vision.search import naming

    return naming.of_shards(words)


def _index_path() -> Any:
    """Returns the path of the index file, or the text milvus:…."""
    from vision.search import naming

    cli.require(index=INDEX.value)
    milvus = naming.in_milvus(INDEX.value)
    return INDEX.value if milvus else output_file('index', INDEX.value)


def _endpoint() -> str:
    return ENDPOINT.value or 'features'


def _kind() -> str:
    return 'hnsw' if HNSW.value else KIND.value


def _output_path() -> Path | None:
    return output_file('output', OUTPUT.value, PICTURES) if OUTPUT.value else None


def _open(place: Any, read_only: bool = False) -> Any:
    """Opens an index; refuses options that it was not built with."""
    from vision.search import naming

    given: dict[str, Any] = {flag.name: flag.value for flag in (METRIC, WHITEN) if flag.present}
    if KIND.present or HNSW.value:
        given['kind'] = _kind()
    with phase('reading the index'):
        return naming.open_index(place, read_only, **given)


def _classifier_and_images(words: list[str]) -> tuple[Any, Any]:
    """Returns the classifier and the images; for a folder of shards None and its manifest."""
    from vision.search import shards

    folder = _of_shards(words)
    if folder is None:
        classifier = _classifier()
        return classifier, _images(classifier, words)
    # The model is not needed. If it is named, it must be the model of the shards.
    classifier = _classifier() if MODEL.named else None
    return None, shards.open_shards(folder, classifier, ENDPOINT.value)


def _classifier() -> Any:
    with phase('reading the model'):
        return MODEL.load(classify=False)


def _require_images(words: list[str]) -> None:
    if not words and SPLIT.value is None:
        raise UserError('name files, folders or globs, or a --split of the run')


def _images(classifier: Any, words: list[str]) -> list[Any]:
    from vision.search import naming

    split = [naming.whole_split(classifier.run, SPLIT.value)] if SPLIT.value else []
    return split + naming.named(classifier.run, words)


def _tell_built(made: Any, count: int, failed: dict[str, str], more: dict[str, Any]) -> int:
    code = _tell_failed(failed)
    about = {'index': INDEX.value, 'images': len(made), 'new': count, 'metric': made.metric}
    errors = [{'path': p, 'error': e} for p, e in failed.items()]
    extra = {'failed': errors} if FORMAT.value == 'json' else {'failed': len(failed)}
    _print({**about, 'endpoint': made.made_by['endpoint'], 'kind': made.kind, **more, **extra})
    return code


def _tell_found(
    results: list[dict[str, Any]], metric: str, classifier: Any, output: Path | None, title: str
) -> int:
    from vision.prediction import formats
    from vision.search import display

    if FORMAT.value == 'json':
        print(formats.dump_json(results, sys.stdout, indent=2))
    else:
        formats.write_neighbours(results, sys.stdout, display.root_of(results))
    if output is not None:
        with phase('writing the pictures'):
            display.write_results(classifier.run, results, metric, output, title=title)
        print(f'Pictures: {output}', file=sys.stderr)
    return cli.ANSWERED_IN_PART if any('error' in r for r in results) else 0


def _tell_failed(failed: dict[str, str]) -> int:
    """Names the images that could not be read on stderr, and returns the exit code."""
    for path, reason in failed.items():
        print(f'{path} cannot be read: {reason}', file=sys.stderr)
    return cli.ANSWERED_IN_PART if failed else 0


def _print(figures: dict[str, Any]) -> None:
    print(json_text(figures) if FORMAT.value == 'json' else figures_text(figures))


COMMANDS = {
    'describe': _describe,
    'build': _build,
    'add': _add,
    'query': _query,
    'replace': _replace,
    'remove': _remove,
    'verify': _verify,
    'duplicates': _duplicates,
    'evaluate': _evaluate,
}
_THRESHOLDS = 'threshold bits neighbours inliers agreement'
_ANSWERS = 'views background where box'
# The options of each command, besides those of the model and --format.
_OPTIONS = {
    'describe': 'split endpoint output distributed',
    'build': 'index split endpoint metric kind hnsw whiten fields',
    'add': 'index split endpoint metric kind hnsw whiten fields',
    'replace': 'index split endpoint metric kind hnsw whiten fields',
    'remove': 'index',
    'verify': 'index',
    'query': f'index split endpoint metric kind hnsw whiten top_k output {_ANSWERS}',
    'duplicates': f'index endpoint whiten against keep deletable explain output {_THRESHOLDS}',
    'evaluate': 'split endpoint',
    'evaluate --copies': f'split endpoint whiten copies each seed verify views {_THRESHOLDS}',
    'evaluate --copies --noverify': 'split endpoint whiten copies each seed verify views background',
    'evaluate --truth': f'index split endpoint whiten truth protocol {_ANSWERS}',
}

if __name__ == '__main__':
    cli.run(main)
