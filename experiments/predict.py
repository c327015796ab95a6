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

cli.heading('The classifier')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "The run's checkpoint: best, last or a step."
)
PRETRAINED = flags.DEFINE_string(
    'pretrained',
    None,
    'ImageNet weights to use instead of a run: efficientnet_lite0 (lite1, lite2), FILE.safetensors, FILE.pth or hf:org/name.',
)
MODEL = flags.DEFINE_string('model', None, 'Model of --pretrained, where the weights do not tell.')
FOLD = flags.DEFINE_bool('fold', True, 'Fold BatchNorm into the convolutions, which is faster.')
cli.heading('The answers')
TOP_K = flags.DEFINE_integer('top_k', 5, 'Number of classes to name for each image.', lower_bound=1)
FORMAT = flags.DEFINE_enum(
    'format', 'table', ['table', 'json', 'jsonl', 'csv'], 'How the answers are printed.'
)
EXPLAIN = flags.DEFINE_string('explain', None, 'File for heat maps, .png or .html.')


def main(argv: list[str]) -> int:
    """Classifies the images and prints the answers."""
    if (WORKDIR.value is None) == (PRETRAINED.value is None):
        raise UserError('give either --workdir=DIR or --pretrained=SOURCE; see --help')
    if len(argv) < 2:
        raise UserError('name at least one image, folder or glob')
    picture = output_file('explain', EXPLAIN.value, PICTURES) if EXPLAIN.value else None
    from vision.core.progress import phase, track

    with phase('starting'):
        from vision.prediction import Classifier, explain, feed, formats

        source = feed.files(argv[1:])
        if PRETRAINED.value is not None:
            classifier = Classifier.from_pretrained(PRETRAINED.value, MODEL.value, FOLD.value)
        else:
            classifier = Classifier.from_workdir(WORKDIR.value, CHECKPOINT.value, FOLD.value)
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
