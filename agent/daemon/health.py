"""The health endpoint on loopback: is it alive, does it take builds and if not why, everything, and the gauges."""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from agent import log
from agent.errors import AgentFailed

_log = log.get("health")


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """What the endpoint shows. Each is called on a thread of the endpoint and must not wait for anything.

    `dead` names loops that have died or hang; `unready` gives the reasons not to take a build.
    """

    dead: Callable[[], Sequence[str]]
    unready: Callable[[], Sequence[str]]
    status: Callable[[], Mapping[str, Any]]
    metrics: Callable[[], tuple[bytes, str]]


class HealthEndpoint:
    """Serves /healthz, /readyz, /status and /metrics."""

    def __init__(self, address: str, views: Views) -> None:
        """Bind to `address`, host:port.

        Raises: AgentFailed when the address can't be had.
        """
        host, _, port = address.rpartition(":")
        handler = type("Handler", (_Handler,), {"views": views})
        try:
            self._server = _Server((host.strip("[]"), int(port)), handler)
        except OSError as error:
            raise AgentFailed(
                f"the health endpoint can't listen on {address}: {error.strerror}; another agent may run here "
                "(set health_address to another port, or to nothing)"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 3600.0}, name="health", daemon=True
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def close(self) -> None:
        """Free the port."""
        if self._thread.is_alive():
            # Closed under a thread that waits on it, a socket would go on taking connections. This wakes the
            # thread, which then sees that it is to end.
            self._server.socket.shutdown(socket.SHUT_RDWR)
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # http.server's own asks DNS for the host's name, which at boot may answer late or never.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            _log.debug("health.peer_gone", str(error))
        else:
            _log.exception("health.request_failed", f"{type(error).__name__}: {error}")


class _Handler(BaseHTTPRequestHandler):
    views: ClassVar[Views]
    timeout = 5  # a peer that says nothing holds a thread no longer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._reasons(self.views.dead())
        elif path == "/readyz":
            self._reasons(self.views.unready())
        elif path == "/status":
            self._send(200, "application/json", json.dumps(self.views.status(), default=str).encode() + b"\n")
        elif path == "/metrics":
            body, content_type = self.views.metrics()
            self._send(200, content_type, body)
        else:
            self._send(404, "text/plain", b"there are /healthz, /readyz, /status and /metrics\n")

    def _reasons(self, reasons: Sequence[str]) -> None:
        text = "\n".join(reasons) if reasons else "ok"
        self._send(503 if reasons else 200, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("health.request", format, *args)
