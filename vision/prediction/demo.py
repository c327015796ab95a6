"""A page that classifies a dropped image: for this machine, or for whoever has its token."""

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
_GIVEN = 320  # pixels of the longer side of the dropped picture
_FEW = 20  # classes whose names are shown without a click
_KEPT = 60  # seconds that an upload lies on the disk; gradio keeps it for ever (its issue 4620)

# Finds images like the one of a source, at most so many.
Similar = Callable[[FileSource, int], Iterable[pages.Picture]]

# Whatever a library's page would like to fetch from elsewhere, the browser refuses.
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
    """Serves the page until a signal comes; prints its address when the first image can be answered at once.

    Args:
      classifier: any.
      similar: finds similar images, as `vision.search.search.Similar` does; None shows none.
      port: 0 for any that is free.
      host: the address to listen at. If it can be reached from other machines, the page is only shown
        to those who have the token that is in the printed address.

    Raises:
      UserError: gradio is missing, or there is no such host, or the port is taken.
    """
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError(
            'the demo needs gradio: pip install "jax-image-classification[demo]"'
        ) from None
    listener, address = _listen(host, port)
    port = listener.getsockname()[1]
    token = None if _is_local(listener) else secrets.token_urlsafe(16)
    print('warming up: compiling for the first image', file=sys.stderr, flush=True)
    _warm_up(classifier, similar)
    with tempfile.TemporaryDirectory() as uploads:
        app = _app(classifier, similar, uploads)
        if token is not None:
            app.add_middleware(_TokenOnly, token=token, cookie=f'vision-demo-{port}')
        listener.listen()  # who comes before the server runs waits, and is not refused
        print(f'http://{address}:{port}' + (f'/?token={token}' if token else ''), flush=True)
        config = uvicorn.Config(app, log_level='error', timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        # Requests that an open page waits for end with the server, and are no errors.
        standard_logging.getLogger('uvicorn.error').addFilter(lambda record: not server.should_exit)
        server.run(sockets=[listener])
        raise KeyboardInterrupt  # it ended for Ctrl-C, which its event loop may keep to itself


def _app(classifier: Classifier, similar: Similar | None, uploads: str) -> Any:
    """The page as an ASGI app, which keeps what is uploaded in a folder for a while."""
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
    """A socket that is bound to a host and port, and the host as it stands in an address."""
    try:
        family, *_, place = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f'--host={host}: there is no such host') from None
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((place[0], port, *place[2:]))
    except (OSError, OverflowError) as e:
        if getattr(e, 'errno', None) == errno.EADDRNOTAVAIL:
            raise UserError(f'--host={host} is no address of this machine') from None
        reason = e.strerror if isinstance(e, OSError) else 'there is no such port'
        raise UserError(f'--port={port}: {reason}; take another, or 0 for any') from None
    if ipaddress.ip_address(place[0]).is_unspecified:
        host = socket.gethostname()
    return listener, f'[{host}]' if ':' in host else host


def _is_local(listener: socket.socket) -> bool:
    """True if only this machine can reach it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _warm_up(classifier: Classifier, similar: Similar | None) -> None:
    """Answers for one image, so that all is imported, traced and compiled before people come."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        Image.new('RGB', (640, 480)).save(f'{folder}/first.jpg')
        answer(classifier, similar, f'{folder}/first.jpg')


def answer(classifier: Classifier, similar: Similar | None, path: str) -> str:
    """The page's answer to an uploaded file: HTML, without the file's place on this machine."""
    try:
        return _answer(classifier, similar, FileSource('upload', (), (path,), np.array([-1])))
    except Exception:
        logging.exception('the demo failed at %s', path)
        return '<p>Something went wrong here; the log says what.</p>'


def _answer(classifier: Classifier, similar: Similar | None, source: FileSource) -> str:
    (path,) = source.paths
    (prediction,) = classifier.classify_source(source, _CLASSES)
    if prediction['error'] is not None:
        return f'<p>This file cannot be read: {html.escape(prediction["error"])}.</p>'
    lines = ''.join(
        f'<tr><td>{html.escape(p["class"])}</td><td>{p["probability"]:.1%}</td>'
        f'<td><span class="bar" style="width: {200 * p["probability"]:.0f}px"></span></td></tr>'
        for p in prediction['predictions']
    )
    lines = lines or '<tr><td>no class reaches the threshold</td></tr>'  # of several labels
    given = pages.figure(decode.read(read_file(path)), os.path.basename(path), side=_GIVEN)
    (why,) = classifier.explain_source(source, _EXPLAINED)
    heat = pages.figure(why.image, 'what the model is fed') + ''.join(
        pages.figure(pictures.overlay(why.image, m), f'why {classifier.class_names[c]}')
        for c, m in zip(why.classes, why.maps, strict=True)
    )
    parts = [
        f'<div class="row" id="answer">{given}<table id="classes">{lines}</table></div>',
        f'<h3>Where the evidence lies</h3><div class="row" id="heat">{heat}</div>',
    ]
    if similar is not None:
        figures = ''.join(pages.figure(*picture) for picture in similar(source, _SIMILAR))
        parts.append(f'<h3>Similar images</h3><div class="row" id="similar">{figures}</div>')
    return ''.join(parts)


def _page(gradio: Any, classifier: Classifier, respond: Callable[[str], str], uploads: str) -> Any:
    async def uploaded(path: str) -> str:
        """Takes what lies among the uploads.

        Of an app that is mounted gradio would take any path or address that a request names: it would show any
        image of this machine, and fetch what it is told to (see its pull request 11162).
        """
        if not Path(path).resolve().is_relative_to(Path(uploads).resolve()):
            raise gradio.Error('no upload')
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
        # The upload makes way for the next one, and with it the link to where it lay.
        file.upload(
            lambda path: (None, respond(path)), file, [file, result], api_name=False, queue=False
        )
    return page


def _name(classifier: Classifier) -> str:
    """Of the run: its folder's, or what weights were read from."""
    return classifier.run.path.name


def _about(classifier: Classifier) -> str:
    """The head of the page: which run this is, and all classes that it knows."""
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


class _TokenOnly:
    """ASGI middleware: answers only who has the token, from the address or, after that, a cookie."""

    def __init__(self, app: Any, token: str, cookie: str):
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] == 'lifespan':
            await self._app(scope, receive, send)
            return
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse

        request = HTTPConnection(scope)
        by_address = self._is_token(request.query_params.get('token'))
        if not by_address and not self._is_token(request.cookies.get(self._cookie)):
            if scope['type'] == 'websocket':
                await send({'type': 'websocket.close', 'code': 1008})
                return
            refusal = PlainTextResponse('The address with its token is needed.\n', 403)
            await refusal(scope, receive, send)
            return

        async def send_with_cookie(message: Any) -> None:
            if by_address and message['type'] == 'http.response.start':
                cookie = f'{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict'
                header = (b'set-cookie', cookie.encode())
                message = {**message, 'headers': [*message['headers'], header]}
            await send(message)

        await self._app(scope, receive, send_with_cookie)

    def _is_token(self, value: str | None) -> bool:
        return value is not None and secrets.compare_digest(value.encode(), self._token.encode())
