"""Serves a trained run or pretrained weights over HTTP: classes, vectors and similar images.

    python -m experiments.serve --workdir=DIR|--pretrained=SOURCE [--index=FILE] [--root=DIR]

    POST /classify, /embed, /search   the image as `file` of a form, or {"path": "FILE"} below --root
    GET /health, /metrics             is it ready; requests, queue, batches and seconds for Prometheus

Examples:
    python -m experiments.serve --workdir=runs/photos --index=photos.index --root=photos
    VISION_TOKEN=secret python -m experiments.serve --pretrained=efficientnet_lite0 --host=0.0.0.0

The address is printed when the server is ready. Only this machine can reach it, unless --host names
another address; then requests need the header "Authorization: Bearer TOKEN". SIGTERM and Ctrl-C
answer what is in hand.
"""

from absl import flags

from vision.core import cli
from vision.core.errors import UserError
from vision.core.text import as_path
from vision.prediction.model_flags import ModelFlags

cli.heading('The model and the index')
MODEL = ModelFlags()
CLASSIFY = flags.DEFINE_bool(
    'classify', True, 'Answer /classify; without it, weights need no classifier.'
)
INDEX = flags.DEFINE_string(
    'index', None, 'Index for /search, see experiments.search: a file or milvus:….'
)
cli.heading('Requests')
HOST = flags.DEFINE_string(
    'host', '127.0.0.1', 'Address to listen on; 0.0.0.0 for all addresses of this machine.'
)
PORT = flags.DEFINE_integer('port', 8000, 'Port to listen on; 0 for any free one.', lower_bound=0)
ROOT = flags.DEFINE_string(
    'root', None, 'Folder below which requests may name files; without it they may not.'
)
MAX_UPLOAD = flags.DEFINE_integer('max_upload', 20, 'Largest file, MB.', lower_bound=1)
MAX_PIXELS = flags.DEFINE_integer('max_pixels', 50, 'Largest image, million pixels.', lower_bound=1)
cli.heading('Batches')
MAX_BATCH = flags.DEFINE_integer('max_batch', 32, 'Largest batch, a power of two.', lower_bound=1)
MAX_WAIT = flags.DEFINE_float(
    'max_wait_ms',
    5.0,
    'Time for which a batch waits for images that are being decoded, ms.',
    0,
    10_000,
)
MAX_QUEUE = flags.DEFINE_integer(
    'max_queue', 256, 'Images in hand; further requests get 503.', lower_bound=1
)


def main(argv: list[str]) -> None:
    """Serves until a signal stops it."""
    cli.refuse_arguments(argv)
    MODEL.check()
    if MAX_BATCH.value & (MAX_BATCH.value - 1):
        raise UserError(f'--max_batch={MAX_BATCH.value} is not a power of two')
    if MAX_WAIT.value != MAX_WAIT.value:
        raise UserError('--max_wait_ms=nan is not a time')
    if MODEL.workdir.value is not None and not CLASSIFY.value:
        raise UserError('--noclassify needs --pretrained')
    if ROOT.value is not None and not as_path(ROOT.value).is_dir():
        raise UserError(f'--root={ROOT.value} is not a folder')
    from vision.core.progress import phase

    with phase('starting'):
        from vision.serving import Collection, Service, serve

        classifier = MODEL.load(classify=CLASSIFY.value)
        collection = Collection(INDEX.value, classifier) if INDEX.value else None
    service = Service(
        classifier,
        collection,
        MAX_BATCH.value,
        MAX_WAIT.value / 1000,
        MAX_QUEUE.value,
        MAX_PIXELS.value * 1_000_000,
        CLASSIFY.value,
    )
    root = str(as_path(ROOT.value)) if ROOT.value else None
    serve(service, HOST.value, PORT.value, root, MAX_UPLOAD.value * 1_000_000)


if __name__ == '__main__':
    cli.run(main)
