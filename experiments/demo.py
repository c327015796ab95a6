"""Serves a web page that classifies images dropped onto it.

    python -m experiments.demo --workdir=DIR|--pretrained=SOURCE [--index=FILE] [--port=7860]

Examples:
    python -m experiments.demo --workdir=runs/photos --index=photos.index
    python -m experiments.demo --pretrained=efficientnet_lite0 --host=0.0.0.0

With --index (see experiments.search) the page also shows similar images. Only this machine can open
the page. With --host, everyone who has the printed address with its token can open it, too. The
images are not sent anywhere else.
"""

from pathlib import Path

from absl import flags

from vision.core import cli
from vision.core.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
PRETRAINED = flags.DEFINE_string(
    'pretrained', None, 'Weights to use instead of a run; see experiments.predict.'
)
MODEL = flags.DEFINE_string('model', None, 'Model of --pretrained, where the weights do not tell.')
CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'best', "The run's checkpoint: best, last or a step."
)
INDEX = flags.DEFINE_string('index', None, 'File of an index, to show similar images.')
HOST = flags.DEFINE_string(
    'host', '127.0.0.1', 'Address to listen on; 0.0.0.0 for all addresses of this machine.'
)
PORT = flags.DEFINE_integer('port', 7860, 'Port to listen on; 0 for any free one.', lower_bound=0)


def main(argv: list[str]) -> None:
    """Serves the page until it is stopped."""
    cli.refuse_arguments(argv)
    if (WORKDIR.value is None) == (PRETRAINED.value is None):
        raise UserError('give either --workdir=DIR or --pretrained=SOURCE; see --help')
    from vision.core.progress import phase

    with phase('starting'):
        from vision.prediction import Classifier, demo
        from vision.search import display, index

        opened = index.load(Path(INDEX.value).expanduser()) if INDEX.value else None
        if PRETRAINED.value is not None:
            classifier = Classifier.from_pretrained(PRETRAINED.value, MODEL.value)
        else:
            classifier = Classifier.from_workdir(WORKDIR.value, CHECKPOINT.value)
        similar = None if opened is None else display.Similar(classifier, opened)
    demo.serve(classifier, similar, PORT.value, HOST.value)


if __name__ == '__main__':
    cli.run(main)
