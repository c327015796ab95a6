"""Serves a web page that classifies images dropped onto it.

    python -m experiments.demo --workdir=DIR|--pretrained=SOURCE [--index=FILE] [--port=7860]

Examples:
    python -m experiments.demo --workdir=runs/photos --index=photos.index
    python -m experiments.demo --pretrained=efficientnet_lite0 --host=0.0.0.0

With --index (see experiments.search) the page also shows similar images. Only this machine can open
the page. With --host, everyone who has the printed address with its token can open it, too. The
images are not sent anywhere else.
"""

from absl import flags

from vision.core import cli
from vision.prediction.model_flags import ModelFlags

MODEL = ModelFlags()
INDEX = flags.DEFINE_string('index', None, 'File of an index, to show similar images.')
HOST = flags.DEFINE_string(
    'host', '127.0.0.1', 'Address to listen on; 0.0.0.0 for all addresses of this machine.'
)
PORT = flags.DEFINE_integer('port', 7860, 'Port to listen on; 0 for any free one.', lower_bound=0)


def main(argv: list[str]) -> None:
    """Serves the page until it is stopped."""
    cli.refuse_arguments(argv)
    MODEL.check()
    from vision.core.progress import phase

    with phase('starting'):
        from vision.prediction import demo
        from vision.search import display, index

        opened = index.load(INDEX.value) if INDEX.value else None
        classifier = MODEL.load()
        similar = None if opened is None else display.Similar(classifier, opened)
    demo.serve(classifier, similar, PORT.value, HOST.value)


if __name__ == '__main__':
    cli.run(main)
