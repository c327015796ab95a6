"""A web page that classifies an uploaded image, shows heat maps and finds similar images.

The page is open to this machine only, or protected by a token if other machines can reach it.
"""

import errno
import html
import ipaddress
import logging as standard_logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vision.core.errors import UserError
from vision.data.source import FileSource, read_file
from vision.prediction import pages, pictures
from vision.prediction.classifier import Classifier
from vision.preprocess import decode

MAX_UPLOAD = 20  # MB
_CLASSES, _EXPLAINED, _SIMILAR = 5, 3, 8
_UPLOAD_SIDE = 320  # pixels of the longer side of the uploaded image on the page
_FEW = 20  # maximum number of class names for which the list is expanded at first
_KEPT = 60  # seconds that an upload stays on disk; gradio's default is forever (gradio issue 4620)

# Returns up to the given number of images that resemble the image of a source.
Similar = Callable[[FileSource, int], Iterable[pages.Picture]]

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
#known { margin: .25rem 0 .5rem; }
.mark { color: #c2410c; display: block; }
.bar { background: #f59e0b; border-radius: 3px; display: inline-block; height: .7rem; }
footer { display: none !important; }
"""


def serve(
    classifier: Classifier, similar: Similar | None, port: int, host: str = '127.0.0.1'
) -> None:
    """Serves the page until a signal stops it.

    Prints the page's address on stdout once the model is compiled and the first image can be
    answered without delay.

    Args:
      classifier: any classifier.
      similar: finds similar images, as `vision.search.display.Similar` does; None shows none.
      port: the port to listen on; 0 for any free port.
      host: the address to listen on. If other machines can reach it, only requests with the token
        of the printed address are answered.

    Raises:
      UserError: gradio is not installed, the host does not exist, or the port is taken.
    """
    # gradio reads these variables when it is imported.
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError(
            'the demo needs gradio: pip install "jax-image-classification[demo]"'
        ) from None
    # Bind the port before the slow warm-up, so that a taken port is reported at once.
    listener, address = _listen(host, port)
    port = listener.getsockname()[1]
    token = None if _is_local(listener) else secrets.token_urlsafe(16)
    print('warming up: compiling for the first image', file=sys.stderr, flush=True)
    _warm_up(classifier, similar)
    with tempfile.TemporaryDirectory() as uploads:
        app = _app(classifier, similar, uploads)
        if token is not None:
            app.add_middleware(_TokenOnly, token=token, cookie=f'vision-demo-{port}')
        # From here on, connections wait until the server runs, instead of being refused.
        listener.listen()
        print(f'http://{address}:{port}' + (f'/?token={token}' if token else ''), flush=True)
        config = uvicorn.Config(app, log_level='error', timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        # An open page keeps requests open; do not log that the shutdown cancels them.
        standard_logging.getLogger('uvicorn.error').addFilter(lambda record: not server.should_exit)
        server.run(sockets=[listener])
        # The server returns only after Ctrl-C, and its event loop may swallow the exception.
        raise KeyboardInterrupt


def _app(classifier: Classifier, similar: Similar | None, uploads: str) -> Any:
    """Builds the ASGI app of the page; `uploads` is the folder that holds uploads for a while."""
    os.environ['GRADIO_TEMP_DIR'] = uploads
    import gradio
    from fastapi import FastAPI

    app = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        _page(gradio, classifier, lambda path: answer(classifier, similar, path), uploads),
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


def _listen(host: str, port: int) -> tuple[socket.socket, str]:
    """Returns a socket bound to a host and port, and the host as it is written in a URL."""
    # Resolve the host, so that IPv6 addresses and names work too.
    try:
        family, *_, place = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f'--host={host}: there is no such host') from None
    # Reuse the address of a server that has just stopped.
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((place[0], port, *place[2:]))
    except (OSError, OverflowError) as e:
        if getattr(e, 'errno', None) == errno.EADDRNOTAVAIL:
            raise UserError(f'--host={host} is not an address of this machine') from None
        reason = e.strerror if isinstance(e, OSError) else 'there is no such port'
        raise UserError(
            f'--port={port}: {reason}; choose another port, or 0 for any free one'
        ) from None
    # 0.0.0.0 and :: are not addresses that a browser can open: print this machine's name.
    if ipaddress.ip_address(place[0]).is_unspecified:
        host = socket.gethostname()
    return listener, f'[{host}]' if ':' in host else host


def _is_local(listener: socket.socket) -> bool:
    """Returns True if only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _warm_up(classifier: Classifier, similar: Similar | None) -> None:
    """Classifies one blank image, which imports, traces and compiles everything in advance."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        Image.new('RGB', (640, 480)).save(f'{folder}/first.jpg')
        answer(classifier, similar, f'{folder}/first.jpg')


def answer(classifier: Classifier, similar: Similar | None, path: str) -> str:
    """Returns the page's answer to an uploaded file as HTML, which does not reveal its path."""
    try:
        return _answer(classifier, similar, FileSource('upload', (), (path,), np.array([-1])))
    except Exception:
        logging.exception('the demo failed at %s', path)
        return '<p>An internal error occurred; see the log of the demo.</p>'


def _answer(classifier: Classifier, similar: Similar | None, source: FileSource) -> str:
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
    upload = pages.figure(decode.read(read_file(path)), os.path.basename(path), side=_UPLOAD_SIDE)
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
        figures = ''.join(pages.figure(*picture) for picture in similar(source, _SIMILAR))
        parts.append(f'<h3>Similar images</h3><div class="row" id="similar">{figures}</div>')
    return ''.join(parts)


def _page(gradio: Any, classifier: Classifier, respond: Callable[[str], str], uploads: str) -> Any:
    async def uploaded(path: str) -> str:
        """Accepts only paths inside the upload folder.

        A mounted gradio app accepts any path or URL that a request names. It would show any image
        of this machine and fetch any URL (see gradio's pull request 11162).
        """
        if not Path(path).resolve().is_relative_to(Path(uploads).resolve()):
            raise gradio.Error('the file is not an upload')
        return path

    with gradio.Blocks(
        title=f'Classify an image: {_name(classifier)}',
        analytics_enabled=False,
        delete_cache=(_KEPT, _KEPT),
    ) as page:
        gradio.HTML(_about(classifier))
        file = gradio.File(
            label=f'Drop an image of at most {MAX_UPLOAD} MB', type='filepath', height=150
        )
        file.async_move_resource_to_block_cache = uploaded
        result = gradio.HTML()
        # Returning None empties the upload field for the next image and drops the link to the file.
        file.upload(
            lambda path: (None, respond(path)), file, [file, result], api_name=False, queue=False
        )
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


class _TokenOnly:
    """ASGI middleware that answers only requests with the token, in the URL or a cookie."""

    def __init__(self, app: Any, token: str, cookie: str):
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] == 'lifespan':
            await self._app(scope, receive, send)
            return
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse

        # Refuse requests that have the token neither in the URL nor in the cookie.
        request = HTTPConnection(scope)
        by_address = self._is_token(request.query_params.get('token'))
        if not by_address and not self._is_token(request.cookies.get(self._cookie)):
            if scope['type'] == 'websocket':
                await send({'type': 'websocket.close', 'code': 1008})
                return
            refusal = PlainTextResponse(
                'Open the full address that the demo printed: it contains a token.\n', 403
            )
            await refusal(scope, receive, send)
            return

        # Set the cookie, so that further requests of the page need no token in the URL.
        async def send_with_cookie(message: Any) -> None:
            if by_address and message['type'] == 'http.response.start':
                cookie = f'{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict'
                header = (b'set-cookie', cookie.encode())
                message = {**message, 'headers': [*message['headers'], header]}
            await send(message)

        await self._app(scope, receive, send_with_cookie)

    def _is_token(self, value: str | None) -> bool:
        return value is not None and secrets.compare_digest(value.encode(), self._token.encode())
