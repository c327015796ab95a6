"""Classifies images with a trained run or with pretrained weights.

    python -m experiments.predict --workdir=DIR|--pretrained=SOURCE PATH… [--explain=FILE]

Examples:
    python -m experiments.predict --workdir=runs/photos holiday/ --format=csv
    python -m experiments.predict --pretrained=hf:timm/resnet50.tv_in1k cat.jpg --explain=why.png

A PATH is an image, a folder or a glob. --explain also draws heat maps of the parts of each image
that the answers depend on (Grad-CAM). Exit code 3: some images could not be read; their rows give
the reasons, and all other images were classified.
"""

import itertools
import sys

from absl import flags

from vision.core import cli
from vision.core.errors import UserError
from vision.core.text import PICTURES, output_file
from vision.prediction.model_flags import ModelFlags

cli.heading('The classifier')
MODEL = ModelFlags()
FOLD = flags.DEFINE_bool('fold', True, 'Fold BatchNorm into the convolutions, which is faster.')
cli.heading('The answers')
TOP_K = flags.DEFINE_integer('top_k', 5, 'Number of classes to name for each image.', lower_bound=1)
FORMAT = flags.DEFINE_enum(
    'format', 'table', ['table', 'json', 'jsonl', 'csv'], 'How the answers are printed.'
)
EXPLAIN = flags.DEFINE_string('explain', None, 'File for heat maps, .png or .html.')


def main(argv: list[str]) -> int:
    """Classifies the images and prints the answers."""
    MODEL.check()
    if len(argv) < 2:
        raise UserError('name at least one image, folder or glob')
    picture = output_file('explain', EXPLAIN.value, PICTURES) if EXPLAIN.value else None
    from vision.core.progress import phase, track

    with phase('starting'):
        from vision.prediction import explain, feed, formats

        source = feed.files(argv[1:])
        classifier = MODEL.load(FOLD.value)
    classifier.expect(source.num_examples)
    answers = classifier.classify_source(source, TOP_K.value)
    bar = FORMAT.value == 'table' or not sys.stdout.isatty()
    if not bar:  # predictions appear on the terminal one by one, the first after compilation
        with phase('classifying the first images'):
            first = list(itertools.islice(answers, 1))
        answers = itertools.chain(first, answers)
    failed = formats.write(track(answers, source.num_examples, 'classifying', bar), FORMAT.value)
    if picture is not None:
        with phase('drawing heat maps'):
            left_out = explain.explain_files(classifier, source, picture)
        more = f'; its first {source.num_examples - left_out} images are in it' if left_out else ''
        print(f'Heat maps: {picture}{more}', file=sys.stderr)
    return cli.ANSWERED_IN_PART if failed else 0


if __name__ == '__main__':
    cli.run(main)
