"""A page that classifies a dropped image, for this machine only."""

import html
import os
import socket
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from absl import logging

from vision.core.errors import UserError
from vision.data.source import FileSource
from vision.prediction import pages, pictures
from vision.prediction.classifier import Classifier

MAX_UPLOAD = 20  # MB
_HOST = '127.0.0.1'
_CLASSES, _EXPLAINED, _SIMILAR = 5, 3, 8

# Finds images like the one of a source, at most so many: each as uint8 [H, W, C] or None, and its caption.
Similar = Callable[[FileSource, int], Iterable[tuple[np.ndarray | None, str]]]

# Whatever a library's page would like to fetch from elsewhere, the browser refuses.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
_STYLE = """
.row { display: flex; flex-wrap: wrap; gap: .75rem; margin: .5rem 0 1rem; }
.row figure { margin: 0; width: 160px; }
.row img { display: block; max-width: 160px; border-radius: 4px; }
.row figcaption { font-size: 12px; overflow-wrap: anywhere; }
.bar { background: #f59e0b; border-radius: 3px; display: inline-block; height: .7rem; }
footer { display: none !important; }
"""


def serve(classifier: Classifier, similar: Similar | None, port: int) -> None:
    """Serves the page on 127.0.0.1 until a signal comes; prints its address when it is there.

    Args:
      classifier: any.
      similar: finds similar images, as `vision.search.search.Similar` does; None shows none.
      port: 0 for any that is free.

    Raises:
      UserError: gradio is missing, or the port is taken.
    """
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    try:
        import gradio
        import uvicorn
        from fastapi import FastAPI
    except ImportError:
        raise UserError(
            'the demo needs gradio: pip install "jax-image-classification[demo]"'
        ) from None
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except (OSError, OverflowError) as e:
        reason = e.strerror if isinstance(e, OSError) else 'there is no such port'
        raise UserError(f'--port={port}: {reason}; take another, or 0 for any') from None
    port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as uploads:
        os.environ['GRADIO_TEMP_DIR'] = uploads
        app: Any = gradio.mount_gradio_app(
            FastAPI(openapi_url=None),
            _page(gradio, lambda path: answer(classifier, similar, path)),
            path='/',
            server_name=_HOST,
            server_port=port,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=f'{MAX_UPLOAD}mb',
            ssr_mode=False,
            css=_STYLE,
            theme=gradio.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace']),
        )
        app.add_middleware(_OwnSourcesOnly)
        print(f'http://{_HOST}:{port}', flush=True)
        config = uvicorn.Config(app, log_level='error')
        uvicorn.Server(config).run(sockets=[listener])
        raise KeyboardInterrupt  # it ended for Ctrl-C, which its event loop may keep to itself


def answer(classifier: Classifier, similar: Similar | None, path: str) -> str:
    """What the page says of an uploaded file: HTML, without the file's place on this machine."""
    try:
        return _answer(classifier, similar, FileSource('upload', (), (path,), np.array([-1])))
    except Exception:
        logging.exception('the demo failed at %s', path)
        return '<p>Something went wrong here; the log says what.</p>'


def _answer(classifier: Classifier, similar: Similar | None, source: FileSource) -> str:
    (prediction,) = classifier.classify_source(source, _CLASSES)
    if prediction['error'] is not None:
        return f'<p>This file cannot be read: {html.escape(prediction["error"])}.</p>'
    lines = ''.join(
        f'<tr><td>{html.escape(p["class"])}</td><td>{p["probability"]:.1%}</td>'
        f'<td><span class="bar" style="width: {200 * p["probability"]:.0f}px"></span></td></tr>'
        for p in prediction['predictions']
    )
    (why,) = classifier.explain_source(source, _EXPLAINED)
    heat = pages.figure(why.image, 'what the model is fed') + ''.join(
        pages.figure(pictures.overlay(why.image, m), f'why {classifier.class_names[c]}')
        for c, m in zip(why.classes, why.maps, strict=True)
    )
    parts = [f'<table id="classes">{lines}</table>', f'<div class="row" id="heat">{heat}</div>']
    if similar is not None:
        figures = ''.join(pages.figure(*found) for found in similar(source, _SIMILAR))
        parts.append(f'<h3>Similar images</h3><div class="row" id="similar">{figures}</div>')
    return ''.join(parts)


def _page(gradio: Any, respond: Callable[[str], str]) -> Any:
    with gradio.Blocks(title='Classify an image', analytics_enabled=False) as page:
        gradio.Markdown(f'## Classify an image\nDrop one of at most {MAX_UPLOAD} MB.')
        file = gradio.File(label='Image', type='filepath')
        result = gradio.HTML()
        # The upload makes way for the next one, and with it the link to where it lay.
        file.upload(
            lambda path: (None, respond(path)), file, [file, result], api_name=False, queue=False
        )
    return page


class _OwnSourcesOnly:
    """ASGI middleware: tells the browser to load nothing from elsewhere."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message['type'] == 'http.response.start':
                policy = (b'content-security-policy', _POLICY.encode())
                message = {**message, 'headers': [*message['headers'], policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)
