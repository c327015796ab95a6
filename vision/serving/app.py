"""The routes of the server: /classify, /embed, /search, /health and /metrics."""

import asyncio
import functools
import logging
from typing import Any

from vision.core.access import TokenOnly
from vision.core.errors import UserError
from vision.core.text import json_text
from vision.serving.asked import Asked, Refused, read_below, read_request
from vision.serving.batching import Full
from vision.serving.bounds import HOLD, Bounded
from vision.serving.service import Answer, Service, finite

_ROUTES = frozenset({'/classify', '/embed', '/search', '/health', '/metrics'})
# Names of this machine; a request with another `Host` comes from a page that an attacker has given
# a name of this machine.
LOCAL = ('localhost', '127.0.0.1', '::1', '[::1]')


def make_app(
    service: Service,
    root: str | None = None,
    max_upload: int = 20_000_000,
    token: str | None = None,
    hosts: tuple[str, ...] | None = LOCAL,
) -> Any:
    """Builds the ASGI app.

    Args:
      service: computes the answers.
      root: the folder below which paths are allowed; None allows none.
      max_upload: bytes of the largest file.
      token: the token that requests must have; None for none.
      hosts: the names in the header `Host` that are answered; None answers all.
    """
    from fastapi import FastAPI, Request, Response
    from starlette.exceptions import HTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect

    app = FastAPI(openapi_url=None, redirect_slashes=False)
    # Clients could fill the log with forms that are not valid.
    logging.getLogger('python_multipart').setLevel(logging.ERROR)

    def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        return Response(json_text(content), status, headers, 'application/json')

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        later = {'Retry-After': '1'} if error.status == 503 else None
        return reply({'error': error.reason}, error.status, later)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        return reply({'error': error.detail}, error.status_code, dict(error.headers or {}))

    async def ask(request: Request, top_k: int, search: bool = False) -> tuple[Asked, Answer]:
        """Reads a request, and waits for the answer for its image."""
        # Do not read a body that would be refused.
        if service.batcher.full:
            raise Refused(503, 'the server is busy')
        try:
            asked = await read_request(request, max_upload, top_k)
        except ClientDisconnect:
            raise Refused(400, 'the client left') from None
        if asked.where and not search:
            raise Refused(400, 'where is an option of /search')
        data = asked.data
        if data is None:
            hold = request.scope[HOLD]
            data = await asyncio.to_thread(read_below, root, asked.name, max_upload, hold)
        try:
            answer = service.submit(data, search)
        except Full:
            raise Refused(503, 'the server is busy') from None
        return asked, await asyncio.wrap_future(answer)

    @app.post('/classify')
    async def classify(request: Request) -> Response:
        if not service.classifies:
            raise Refused(404, 'the weights have no classifier')
        asked, (probabilities, _) = await ask(request, top_k=5)
        finite(probabilities, 'probabilities')
        predictions = service.classifier.predictions(probabilities, asked.top_k)
        return reply({'path': asked.name, 'predictions': predictions, 'error': None})

    @app.post('/embed')
    async def embed(request: Request) -> Response:
        asked, (_, vector) = await ask(request, top_k=1)
        finite(vector, 'features')
        return reply({'path': asked.name, 'endpoint': service.endpoint, 'vector': vector.tolist()})

    @app.post('/search')
    async def search(request: Request) -> Response:
        if service.collection is None:
            raise Refused(404, 'the server has no index; start it with --index=FILE')
        asked, (_, vector) = await ask(request, top_k=10, search=True)
        finite(vector, 'features')
        look = functools.partial(service.collection.nearest, vector, asked.top_k, asked.where)
        try:
            neighbours = await asyncio.to_thread(look)
        except (UserError, RecursionError) as e:  # the condition is not valid, or Milvus is away
            raise Refused(503 if str(e).startswith('Milvus') else 400, str(e)) from None
        return reply({'path': asked.name, 'neighbours': neighbours})

    @app.api_route('/health', methods=['GET', 'HEAD'])
    async def health() -> Response:
        run = service.classifier.run
        about = {'status': 'ready', 'model': run.config.model.name, 'endpoint': service.endpoint}
        return reply({**about, 'classes': len(service.classifier.class_names)})

    @app.api_route('/metrics', methods=['GET', 'HEAD'])
    async def metrics() -> Response:
        text = service.metrics.text(service.batcher.in_hand)
        return Response(text, media_type='text/plain; version=0.0.4')

    if token is not None:
        hint = 'the token is missing or wrong; send the header "Authorization: Bearer TOKEN"'
        refusal = reply({'error': hint}, 403)
        app.add_middleware(TokenOnly, token=token, refusal=refusal)
    elif hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Bounded(app, service.metrics, _ROUTES, max_upload)
