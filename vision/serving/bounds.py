"""ASGI middleware that bounds what a request may cost before it is answered, and counts requests.

A body is read only up to a limit of bytes, within a limit of time, and as long as all requests
together hold no more than a limit of bytes. A file that is read for a request counts like a body.
The connection of a request that is answered before its body has been read is closed, so that the
rest is not read.
"""

import asyncio
import threading
import time
from typing import Any

from vision.serving.asked import Refused, too_large
from vision.serving.metrics import Metrics

_SECONDS = 60.0  # for a client to send a body
_OVERHEAD = 65536  # bytes of a multipart body around the file
_HELD = 16  # bodies of the largest size that are held at once
HOLD = 'vision.hold'  # key of a request's scope: `_Request.hold`


class Bounded:
    """ASGI middleware with the limits that the module describes.

    The app answers the exception `Refused`, which it gets when it reads the body.
    """

    def __init__(self, app: Any, metrics: Metrics, routes: frozenset[str], max_upload: int):
        """Takes the app, the metrics, the paths that are counted by name, and bytes of a file."""
        self._app, self._metrics, self._routes = app, metrics, routes
        self._max_body = max_upload + _OVERHEAD
        # Files are read by other threads than bodies.
        self._held, self._max_held, self._lock = 0, _HELD * self._max_body, threading.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request within the limits."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        request = _Request(self, scope, receive, send)
        try:
            await self._app({**scope, HOLD: request.hold}, request.receive, request.send)
        finally:
            with self._lock:
                self._held -= request.size
            route = scope['path'] if scope['path'] in self._routes else 'other'
            self._metrics.answered(route, request.status, time.monotonic() - request.began)

    def hold(self, size: int, more: int) -> None:
        """Accounts for more bytes of a request of `size`; raises Refused if there are too many."""
        if size + more > self._max_body:
            raise too_large(self._max_body - _OVERHEAD)
        with self._lock:
            if self._held + more > self._max_held:
                raise Refused(503, 'too many large images at once')
            self._held += more


class _Request:
    """One request: the bytes that it holds, and the status of its answer."""

    def __init__(self, bounds: Bounded, scope: Any, receive: Any, send: Any):
        self._bounds, self._receive, self._send = bounds, receive, send
        headers = dict(scope['headers'])
        self._announced = int(headers.get(b'content-length', b'0'))
        # Without these headers there is no body.
        self._read = not (self._announced or b'transfer-encoding' in headers)
        self.began, self.size, self.status = time.monotonic(), 0, 499  # 499: the client left

    def hold(self, more: int) -> None:
        """Accounts for more bytes; raises Refused if there are too many."""
        self._bounds.hold(self.size, more)
        self.size += more

    async def receive(self) -> Any:
        """Receives a part of the body; raises Refused beyond a limit."""
        if self._read:
            return await self._receive()
        if not self.size:
            self._bounds.hold(self._announced, 0)
        try:
            left = self.began + _SECONDS - time.monotonic()
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            raise Refused(408, 'the body took too long') from None
        if message['type'] == 'http.request':
            self.hold(len(message.get('body', b'')))
            self._read = not message.get('more_body', False)
        return message

    async def send(self, message: Any) -> None:
        """Sends a part of the answer."""
        if message['type'] == 'http.response.start':
            self.status = message['status']
            if not self._read:
                message = {**message, 'headers': [*message['headers'], (b'connection', b'close')]}
        await self._send(message)
