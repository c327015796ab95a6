"""A web page that classifies an uploaded image, shows heat maps and finds similar images.

The page is open to this machine only, or protected by a token if other machines can reach it.
"""

import html
import logging as standard_logging
import os
import sys
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vision.core import access
from vision.core.errors import not_installed
from vision.data.source import FileSource, read_file
from vision.prediction import pages, pictures, review
from vision.prediction.classifier import Classifier
from vision.preprocess import decode

MAX_UPLOAD = 20  # MB
_CLASSES, _EXPLAINED, _SIMILAR, _LISTED = 5, 3, 8, 100
_UPLOAD_SIDE = 320  # pixels of the longer side of the uploaded image on the page
_PAIR_SIDE, _PAIRS = 960, 3  # pixels of a pair of images with matched points, and the most pairs
_FEW = 20  # maximum number of class names for which the list is expanded at first
_KEPT = 60  # seconds that an upload stays on disk; gradio's default is forever (gradio issue 4620)

# Keeps the browser from loading anything from another host, such as fonts of the gradio page.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
_STYLE = """
.row { display: flex; flex-wrap: wrap; gap: .75rem; margin: .5rem 0 1rem; }
.row figure { margin: 0; width: min(160px, calc(50% - .375rem)); }
.row img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.row figcaption { font-size: 12px; overflow-wrap: anywhere; }
#answer { align-items: flex-start; gap: 1.5rem; }
#answer figure { width: auto; }
#answer img { max-width: min(320px, 80vw); }
#classes, #classes tr, #classes td { border: 0; }
#classes td { padding: .2rem .75rem .2rem 0; }
#classes td:last-child { min-width: 200px; }
.list { max-height: 24rem; overflow: auto; }
.list td, .list th { font-size: 12px; padding: .15rem .75rem .15rem 0; text-align: left; }
.list table, .list tr, .list td, .list th { border: 0; }
.list td { overflow-wrap: anywhere; }
.list td:first-child, .list td:last-child { overflow-wrap: normal; white-space: nowrap; }
#matched figure { width: min(36rem, 100%); }
#group figure { width: min(240px, calc(50% - .375rem)); }
#known { margin: .25rem 0 .5rem; }
.mark { color: #c2410c; display: block; }
.bar { background: #f59e0b; border-radius: 3px; display: inline-block; height: .7rem; }
footer { display: none !important; }
"""


def serve(
    classifier: Classifier, similar: review.Collection | None, port: int, host: str = '127.0.0.1'
) -> None:
    """Serves the page until a signal stops it.

    Prints the page's address on stdout once the model is compiled and the first image can be
    answered without delay.

    Args:
      classifier: any classifier.
      similar: the collection whose similar images and duplicates are shown, such as
        `vision.search.display.Similar`; None shows none.
      port: the port to listen on; 0 for any free port.
      host: the address to listen on. If other machines can reach it, only requests with the token
        of the printed address are answered. It is that of the environment variable VISION_TOKEN, or
        a random one.

    Raises:
      UserError: gradio is not installed, the host does not exist, or the port is taken.
    """
    # gradio reads these variables when it is imported.
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    try:
        import gradio  # noqa: F401
        import uvicorn
        from starlette.responses import PlainTextResponse
    except ImportError:
        raise not_installed('the demo', 'gradio', 'demo') from None
    # Bind the port before the slow warm-up, so that a taken port is reported at once.
    listener, address = access.listen(host, port)
    port = listener.getsockname()[1]
    token = access.token_of(listener, invent=True)
    print('warming up: compiling for the first image', file=sys.stderr, flush=True)
    _warm_up(classifier, similar)
    with tempfile.TemporaryDirectory() as uploads:
        app = _app(classifier, similar, uploads)
        if token is not None:
            hint = 'Open the full address that the demo printed: it contains a token.\n'
            refusal, cookie = PlainTextResponse(hint, 403), f'vision-demo-{port}'
            app.add_middleware(access.TokenOnly, token=token, refusal=refusal, cookie=cookie)
        # From here on, connections wait until the server runs, instead of being refused.
        listener.listen()
        query = f'/?token={urllib.parse.quote(token, safe="")}' if token else ''
        print(f'http://{address}:{port}{query}', flush=True)
        config = uvicorn.Config(app, log_level='error', timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        # An open page keeps requests open; do not log that the shutdown cancels them.
        standard_logging.getLogger('uvicorn.error').addFilter(lambda record: not server.should_exit)
        server.run(sockets=[listener])
        # The server returns only after Ctrl-C, and its event loop may swallow the exception.
        raise KeyboardInterrupt


def _app(classifier: Classifier, similar: review.Collection | None, uploads: str) -> Any:
    """Builds the ASGI app of the page; `uploads` is the folder that holds uploads for a while."""
    os.environ['GRADIO_TEMP_DIR'] = uploads
    import gradio
    from fastapi import FastAPI

    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        _page(gradio, classifier, similar, uploads),
        path='/',
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=f'{MAX_UPLOAD}mb',
        ssr_mode=False,
        css=_STYLE,
        theme=gradio.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace']),
    )
    app.add_middleware(_OwnSourcesOnly)
    return app


def _warm_up(classifier: Classifier, similar: review.Collection | None) -> None:
    """Classifies one blank image, which imports, traces and compiles everything in advance."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        Image.new('RGB', (640, 480)).save(f'{folder}/first.jpg')
        answer(classifier, similar, f'{folder}/first.jpg')


def answer(classifier: Classifier, similar: review.Collection | None, path: str) -> str:
    """Returns the page's answer to an uploaded file as HTML, which does not reveal its path."""
    try:
        return _answer(classifier, similar, FileSource('upload', (), (path,), np.array([-1])))
    except Exception:
        logging.exception('the demo failed at %s', path)
        return '<p>An internal error occurred; see the log of the demo.</p>'


def _answer(classifier: Classifier, similar: review.Collection | None, source: FileSource) -> str:
    # Predict; for a file that is not an image, the answer is the reason.
    (path,) = source.paths
    (prediction,) = classifier.classify_source(source, _CLASSES)
    if prediction['error'] is not None:
        return f'<p>This file cannot be read: {html.escape(prediction["error"])}.</p>'
    # The table of classes, with a bar for each probability.
    lines = ''.join(
        f'<tr><td>{html.escape(p["class"])}</td><td>{p["probability"]:.1%}</td>'
        f'<td><span class="bar" style="width: {200 * p["probability"]:.0f}px"></span></td></tr>'
        for p in prediction['predictions']
    )
    # A multi-label model may name no class at all.
    lines = lines or '<tr><td>no class reaches the threshold</td></tr>'
    image = decode.read(read_file(path))
    upload = pages.figure(image, os.path.basename(path), side=_UPLOAD_SIDE)
    # The model input and one heat map for each of the most probable classes.
    (explanation,) = classifier.explain_source(source, _EXPLAINED)
    heat = pages.figure(explanation.image, 'model input') + ''.join(
        pages.figure(
            pictures.overlay(explanation.image, m), f'evidence for {classifier.class_names[c]}'
        )
        for c, m in zip(explanation.classes, explanation.maps, strict=True)
    )
    parts = [
        f'<div class="row" id="answer">{upload}<table id="classes">{lines}</table></div>',
        f'<h3>Evidence (Grad-CAM)</h3><div class="row" id="heat">{heat}</div>',
    ]
    if similar is not None:
        parts.append(_neighbours(similar, image, similar.find(source, _LISTED)))
    return review.printable(''.join(parts))


def _neighbours(similar: review.Collection, image: np.ndarray, found: list[dict[str, Any]]) -> str:
    """Returns the pictures of the nearest images, and the list of more of them with its CSV."""
    compared = list(similar.compare(image, found[:_SIMILAR]))
    figures = ''.join(pages.figure(*picture) for picture, _ in compared)
    pairs = [pages.figure(*pair, side=_PAIR_SIDE) for _, pair in compared if pair is not None]
    matched = ''
    if pairs:
        matched = (
            '<h3>Matched parts</h3><p>Outlines show the part that both images have.</p>'
            f'<div class="row" id="matched">{"".join(pairs[:_PAIRS])}</div>'
        )
    header = ('rank', 'path', 'score')
    rows = [(i, n['path'], f'{n["score"]:.6f}') for i, n in enumerate(found, 1)]
    return (
        f'<h3>Similar images</h3><div class="row" id="similar">{figures}</div>'
        f'<p>{review.csv_link("similar.csv", header, rows)}</p><details id="list">'
        f'<summary>The nearest {len(rows)}</summary>{review.table(header, rows)}</details>{matched}'
    )


def _page(
    gradio: Any, classifier: Classifier, similar: review.Collection | None, uploads: str
) -> Any:
    async def uploaded(path: str) -> str:
        """Accepts only paths inside the upload folder.

        A mounted gradio app accepts any path or URL that a request names. It would show any image
        of this machine and fetch any URL (see gradio's pull request 11162).
        """
        if not Path(path).resolve().is_relative_to(Path(uploads).resolve()):
            raise gradio.Error('the file is not an upload')
        return path

    def guard(component: Any) -> Any:
        component.async_move_resource_to_block_cache = uploaded
        return component

    def drop_zone() -> None:
        label = f'Drop an image of at most {MAX_UPLOAD} MB'
        file = guard(gradio.File(label=label, type='filepath', height=150))
        result = gradio.HTML()

        def respond(path: str) -> tuple[None, str]:
            # None empties the field for the next image and drops the link to the file.
            return None, answer(classifier, similar, path)

        file.upload(respond, file, [file, result], api_name=False, queue=False)

    with gradio.Blocks(
        title=f'Classify an image: {_name(classifier)}',
        analytics_enabled=False,
        delete_cache=(_KEPT, _KEPT),
    ) as page:
        gradio.HTML(_about(classifier))
        if similar is None:
            drop_zone()
        else:
            with gradio.Tab('An image'):
                drop_zone()
            with gradio.Tab('Duplicates'):
                review.build(gradio, review.Review(similar), guard)
    return page


def _name(classifier: Classifier) -> str:
    """Returns the run's folder name, or the name of the weights' file."""
    return classifier.run.path.name


def _about(classifier: Classifier) -> str:
    """Returns the head of the page: the run's name, its model, its step and all its classes."""
    run, names = classifier.run, classifier.class_names
    step = f', checkpoint of step {run.step:,}' if run.step else ''
    every = ', '.join(names)
    return (
        f'<h2 id="run">{html.escape(_name(classifier))}</h2>'
        f'<p>{html.escape(run.config.model.name)}{step}</p>'
        f'<details id="known"{" open" if len(names) <= _FEW else ""}><summary>{len(names):,} classes</summary>'
        f'<p>{html.escape(every)}</p></details>'
    )


class _OwnSourcesOnly:
    """ASGI middleware that keeps the browser from loading anything from another host."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message['type'] == 'http.response.start':
                policy = (b'content-security-policy', _POLICY.encode())
                message = {**message, 'headers': [*message['headers'], policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)
