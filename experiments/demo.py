"""Serves a page that classifies a dropped image.

python -m experiments.demo --workdir=DIR [--index=FILE] [--port=7860]
python -m experiments.demo --pretrained=SOURCE --host=0.0.0.0

With --index (see experiments.search) it also shows similar images. The page is for this machine; with
--host, for those who have the address that is printed, with its token. Nothing is sent elsewhere.
"""

from pathlib import Path

from absl import flags

from vision.core import cli
from vision.core.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')
PRETRAINED = flags.DEFINE_string('pretrained', None, 'Weights; see experiments.predict.')
MODEL = flags.DEFINE_string('model', None, 'The model, where --pretrained does not tell.')
CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, last or a step.')
INDEX = flags.DEFINE_string('index', None, 'The file of an index, for similar images.')
HOST = flags.DEFINE_string(
    'host', '127.0.0.1', "The address to listen at: 0.0.0.0 for all of this machine's."
)
PORT = flags.DEFINE_integer('port', 7860, 'Of the host; 0 for any that is free.', lower_bound=0)


def main(argv: list[str]) -> None:
    """Serves until it is stopped."""
    cli.refuse_arguments(argv)
    if (WORKDIR.value is None) == (PRETRAINED.value is None):
        raise UserError('give either --workdir=DIR or --pretrained=SOURCE; see --help')
    from vision.prediction import Classifier, demo
    from vision.search import index, search

    opened = index.load(Path(INDEX.value).expanduser()) if INDEX.value else None
    if PRETRAINED.value is not None:
        classifier = Classifier.from_pretrained(PRETRAINED.value, MODEL.value)
    else:
        classifier = Classifier.from_workdir(WORKDIR.value, CHECKPOINT.value)
    similar = None if opened is None else search.Similar(classifier, opened)
    demo.serve(classifier, similar, PORT.value, HOST.value)


if __name__ == '__main__':
    cli.run(main)
