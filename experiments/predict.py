"""Classifies images with a trained run.

python -m experiments.predict --workdir=DIR|--pretrained=SOURCE PATH… [--top_k=5] [--format=table|json|jsonl|csv] [--explain=FILE.png|FILE.html]

A PATH is an image, a folder or a glob. Exit code 3: some images could not be read; their rows say
why, the others are answered. --explain also shows where in the images the evidence lies (Grad-CAM).
"""

import sys

from absl import flags

from vision.core import cli
from vision.core.errors import UserError
from vision.core.text import PICTURES, output_file

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')
PRETRAINED = flags.DEFINE_string(
    'pretrained',
    None,
    'ImageNet weights: efficientnet_lite0 (lite1, lite2), FILE.safetensors, FILE.pth or hf:org/name.',
)
MODEL = flags.DEFINE_string(
    'model', None, 'The model, where neither name nor tensors of --pretrained tell.'
)
FOLD = flags.DEFINE_bool('fold', True, 'Fold BatchNorm into the convolutions: faster.')
CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, last or a step.')
TOP_K = flags.DEFINE_integer('top_k', 5, 'How many classes to name.', lower_bound=1)
FORMAT = flags.DEFINE_enum(
    'format', 'table', ['table', 'json', 'jsonl', 'csv'], 'How the answers are printed.'
)
EXPLAIN = flags.DEFINE_string('explain', None, 'A .png or .html file for the heat maps.')


def main(argv: list[str]) -> int:
    """Classifies, and prints the answers."""
    if (WORKDIR.value is None) == (PRETRAINED.value is None):
        raise UserError('give either --workdir=DIR or --pretrained=SOURCE; see --help')
    if len(argv) < 2:
        raise UserError('name at least one image, folder or glob')
    from vision.core.progress import track
    from vision.prediction import Classifier, explain, feed, formats

    picture = output_file('explain', EXPLAIN.value, PICTURES) if EXPLAIN.value else None
    if PRETRAINED.value is not None:
        classifier = Classifier.from_pretrained(PRETRAINED.value, MODEL.value, FOLD.value)
    else:
        classifier = Classifier.from_workdir(WORKDIR.value, CHECKPOINT.value, FOLD.value)
    source = feed.files(argv[1:])
    answers = classifier.classify_source(source, TOP_K.value)
    bar = FORMAT.value == 'table' or not sys.stdout.isatty()
    failed = formats.write(track(answers, source.num_examples, 'classifying', bar), FORMAT.value)
    if picture is not None:
        left_out = explain.explain_files(classifier, source, picture)
        more = f'; its first {source.num_examples - left_out} images are in it' if left_out else ''
        print(f'Heat maps: {picture}{more}', file=sys.stderr)
    return cli.ANSWERED_IN_PART if failed else 0


if __name__ == '__main__':
    cli.run(main)
