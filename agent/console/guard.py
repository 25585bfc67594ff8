"""What every request passes, whatever it asks for: the host it names, where it comes from, how large it is.

And the headers of every answer, errors and static files included.
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.config import Settings
from agent.console.problem import Problem

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
BODY_BYTES = 2 << 20
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_STATIC = "/static/"


class Guard:
    """Stands before the application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        url = urlsplit(settings.console_url)
        self._host = url.netloc.lower()
        self._headers = dict(_HEADERS)
        if url.scheme == "https":
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_static = str(scope["path"]).startswith(_STATIC)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                if not is_static:
                    # Pages of who has signed out must not come back with the back button.
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        problem = self._refuse(str(scope["method"]), Headers(scope=scope))
        if problem is not None:
            await problem.response()(scope, receive, send_guarded)
            return
        await self._app(scope, _limited(receive), send_guarded)

    def _refuse(self, method: str, headers: Headers) -> Problem | None:
        if self._host and headers.get("host", "").lower() != self._host:
            return Problem(
                status=HTTPStatus.MISDIRECTED_REQUEST,
                detail=f"this console is reached as {self._host}, by the setting console_url",
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_BYTES:
            return Problem(
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                detail=f"a request has {BODY_BYTES:,} bytes at most",
            )
        if method not in _SAFE and is_cross_site(headers):
            return Problem(
                status=HTTPStatus.FORBIDDEN, detail="this came from another site: nothing is changed by it"
            )
        return None


def is_cross_site(headers: Headers) -> bool:
    """Whether a browser sent a request for another site.

    As Go's net/http.CrossOriginProtection has it, and datasette after it: browsers since 2023 tell by Sec-Fetch-Site; an
    older one names the Origin, which must be the host that is asked. What sends neither is no browser, and has no
    cookie to misuse.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return False
    return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


class BodyTooLarge(Exception):
    """A body that did not tell its length is larger than any may be."""


def _limited(receive: Receive) -> Receive:
    """Return a `receive` that ends a body which is too large, whatever its headers said."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_BYTES:
            raise BodyTooLarge
        return message

    return limited
