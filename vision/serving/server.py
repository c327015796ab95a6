"""The server's process: the socket, warming up, signals and slow clients."""

import sys
from typing import Any

from vision.core import access, startup
from vision.core.errors import UserError, not_installed
from vision.serving.app import LOCAL, make_app
from vision.serving.service import Service

_HEAD = 10.0  # seconds for a client to send the head of a request
_GRACE = 20  # seconds after a signal for requests in hand
_CONNECTIONS = 800  # of 1,024 files that a process may open, as a rule


def serve(
    service: Service,
    host: str = '127.0.0.1',
    port: int = 8000,
    root: str | None = None,
    max_upload: int = 20_000_000,
) -> None:
    """Serves a classifier until a signal stops it.

    Prints the address on stdout when the first request can be answered without delay. After SIGTERM
    or SIGINT no connection is accepted any more; requests in hand are answered.

    Args:
      service: computes the answers.
      host: the address to listen on. If other machines can reach it, requests must have the token
        of the environment variable VISION_TOKEN.
      port: the port to listen on; 0 for any free one.
      root: the folder below which paths are allowed; None allows none.
      max_upload: bytes of the largest file.

    Raises:
      UserError: FastAPI is not installed, the host does not exist, the port is taken, or there is
        no token.
    """
    uvicorn = _uvicorn()
    # Bind the port before the slow warm-up, so that a taken port is reported at once.
    listener, address = access.listen(host, port)
    token = access.token_of(listener)
    print('warming up: compiling for all sizes of a batch', file=sys.stderr, flush=True)
    service.warm_up()
    hosts = (*LOCAL, address, listener.getsockname()[0])
    app = make_app(service, root, max_upload, token, hosts)
    config = uvicorn.Config(
        app,
        http=_protocol(),
        ws='none',
        log_level='error',
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )

    class Server(uvicorn.Server):  # type: ignore[name-defined]
        def handle_exit(self, sig: int, frame: Any) -> None:
            """Stops at the first signal; ends the process at the second."""
            if self.should_exit:
                startup.exit_at_once(128 + sig)
            super().handle_exit(sig, frame)

    # From here on connections wait until the server runs, instead of being refused.
    try:
        listener.listen()
    except OSError as e:  # another server took the port during the warm-up
        raise UserError(f'--port={port}: {e.strerror}; choose another port') from None
    print(f'http://{address}:{listener.getsockname()[1]}', flush=True)
    try:
        Server(config).run(sockets=[listener])  # raises the signal again at its end
    finally:
        service.close()


def _uvicorn() -> Any:
    """Imports and returns uvicorn, if all that the server needs is installed."""
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError:
        raise not_installed('serving', 'FastAPI', 'serve') from None
    return uvicorn


def _protocol() -> type:
    """Returns uvicorn's protocol with limits that it lacks: connections, and seconds for a head."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Timed(H11Protocol):
        _late: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > _CONNECTIONS:
                transport.abort()
            self._late = self.loop.call_later(_HEAD, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # A request is being answered, or the next one has begun.
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering and self._late is not None:
                self._late.cancel()
                self._late = None
            elif not answering and self._late is None:
                self._late = self.loop.call_later(_HEAD, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._late is not None:
                self._late.cancel()
            super().connection_lost(exc)

    return Timed
