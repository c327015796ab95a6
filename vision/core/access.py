"""Who can reach a server: the address that it listens on, and the token that requests must have.

A server that only this machine can reach needs no token, but answers only requests that name this
machine as their host: a page in a browser could otherwise read answers by DNS rebinding.
"""

import errno
import ipaddress
import os
import secrets
import socket
from typing import Any

from vision.core.errors import UserError

TOKEN = 'VISION_TOKEN'  # the environment variable with the token


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """Returns a socket bound to a host and port, and the host as it is written in a URL.

    Raises:
      UserError: the host does not exist or is not of this machine, or the port is taken.
    """
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


def is_local(listener: socket.socket) -> bool:
    """Returns True if only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def token_of(listener: socket.socket, invent: bool = False) -> str | None:
    """Returns the token that requests must have, or None if they need none.

    It is the value of the environment variable VISION_TOKEN.

    Args:
      listener: the socket of the server.
      invent: choose a random token if other machines can reach the socket and none is set.

    Raises:
      UserError: other machines can reach the socket, and there is no token.
    """
    token = os.environ.get(TOKEN, '')
    if not token.isascii() or not token.isprintable():
        raise UserError(f'{TOKEN} must consist of printable ASCII characters')
    if token or is_local(listener):
        return token or None
    if invent:
        return secrets.token_urlsafe(16)
    raise UserError(
        f'other machines can reach this --host: set the environment variable {TOKEN} to the token '
        'that their requests must have'
    )


class TokenOnly:
    """ASGI middleware that answers only requests with the token.

    The token is in the header `Authorization: Bearer TOKEN`, in the URL as `?token=TOKEN`, or in a
    cookie, which is set by a request with the token in the URL.
    """

    def __init__(self, app: Any, token: str, refusal: Any, cookie: str | None = None):
        """Takes the ASGI app, the token, the answer to others, and the cookie's name or None.

        The answer is an ASGI app, such as a Starlette response with status 403.
        """
        self._app, self._token, self._refusal, self._cookie = app, token, refusal, cookie

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request, or refuses it."""
        if scope['type'] == 'lifespan':
            await self._app(scope, receive, send)
            return
        from starlette.requests import HTTPConnection

        # Refuse requests that have the token nowhere.
        request = HTTPConnection(scope)
        by_address = self._is_token(request.query_params.get('token'))
        kind, _, value = request.headers.get('authorization', '').partition(' ')
        allowed = by_address or (kind.lower() == 'bearer' and self._is_token(value.strip()))
        if self._cookie is not None:
            allowed = allowed or self._is_token(request.cookies.get(self._cookie))
        if not allowed:
            if scope['type'] == 'websocket':
                await send({'type': 'websocket.close', 'code': 1008})
                return
            await self._refusal(scope, receive, send)
            return

        # Set the cookie, so that further requests of the page need no token in the URL.
        async def send_with_cookie(message: Any) -> None:
            if by_address and self._cookie and message['type'] == 'http.response.start':
                cookie = f'{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict'
                header = (b'set-cookie', cookie.encode())
                message = {**message, 'headers': [*message['headers'], header]}
            await send(message)

        await self._app(scope, receive, send_with_cookie)

    def _is_token(self, value: str | None) -> bool:
        return value is not None and secrets.compare_digest(value.encode(), self._token.encode())
