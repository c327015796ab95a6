"""Serves a page on this machine that classifies a dropped image.

python -m experiments.demo --workdir=DIR [--index=FILE] [--port=7860]

With --index (see experiments.search) it also shows similar images. Nothing is shared or sent away.
"""

from pathlib import Path

from absl import flags

from vision.core import cli

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')
CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, last or a step.')
INDEX = flags.DEFINE_string('index', None, 'The file of an index, for similar images.')
PORT = flags.DEFINE_integer('port', 7860, 'Of 127.0.0.1; 0 for any that is free.', lower_bound=0)


def main(argv: list[str]) -> None:
    """Serves until it is stopped."""
    cli.refuse_arguments(argv)
    cli.require(workdir=WORKDIR.value)
    from vision.prediction import Classifier, demo
    from vision.search import index, search

    opened = index.load(Path(INDEX.value).expanduser()) if INDEX.value else None
    classifier = Classifier.from_workdir(WORKDIR.value, CHECKPOINT.value)
    similar = None if opened is None else search.Similar(classifier, opened)
    demo.serve(classifier, similar, PORT.value)


if __name__ == '__main__':
    cli.run(main)
