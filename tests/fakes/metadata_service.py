"""A fake of the EC2 instance metadata service on loopback: version 2 only, every document settable.

It says that it is a fake (`Server: fake-instance-metadata`) and keeps to what EC2 documents: a token by PUT
with its life in seconds (1 to 21600), 400 for another life, 403 for a forwarded request or a switched-off
endpoint, 401 for a request without a token that holds, 404 for a document that is not there. The hop limit is
shown as a client sees it: the token's answer never arrives.

    with FakeMetadataService(instance_id="i-0123456789abcdef0") as service:
        service.set_spot_action("terminate", at="2030-01-01T00:00:00Z")
        MetadataClient(service.url).spot_action()
"""

from __future__ import annotations

import json
import secrets
import threading
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from agent import clock

_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_HANG_LIMIT_S = 30.0


class Endpoint(StrEnum):
    """How the service behaves as a whole."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    """HttpEndpoint=disabled: 403 to everything."""
    TOO_MANY_HOPS = "too-many-hops"
    """The client is a hop farther than HttpPutResponseHopLimit: no token ever arrives."""
    BROKEN = "broken"
    """500 to everything."""


class FakeMetadataService:
    """One instance's metadata service; a context manager, or `start` and `stop`.

    `documents` maps paths below /latest/ to texts and may be changed at any time. `requests` is every request
    seen, as (method, path, status).
    """

    def __init__(
        self,
        *,
        instance_id: str = "i-0fa4e000000000001",
        ami_id: str = "ami-0fa4e000000000001",
        instance_type: str = "m5.large",
        region: str = "eu-west-1",
        local_ipv4: str = "10.0.1.7",
        tags: dict[str, str] | None = None,
    ) -> None:
        self.documents: dict[str, str] = {
            "meta-data/instance-id": instance_id,
            "meta-data/ami-id": ami_id,
            "meta-data/instance-type": instance_type,
            "meta-data/placement/availability-zone": f"{region}a",
            "meta-data/placement/region": region,
            "meta-data/local-ipv4": local_ipv4,
            "meta-data/hostname": f"ip-{local_ipv4.replace('.', '-')}.{region}.compute.internal",
        }
        if tags is not None:
            self.set_tags(tags)
        self.endpoint = Endpoint.ENABLED
        self.requests: list[tuple[str, str, int]] = []
        self._tokens: dict[str, clock.Deadline] = {}
        self._stopping = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Its address, a free port on loopback."""
        if self._server is None:
            raise RuntimeError("the fake metadata service is not started")
        return f"http://127.0.0.1:{self._server.server_port}"

    def set_tags(self, tags: dict[str, str] | None) -> None:
        """Open these tags to the metadata; None closes them (InstanceMetadataTags=disabled)."""
        prefix = "meta-data/tags/instance"
        kept = {path: text for path, text in self.documents.items() if not path.startswith(prefix)}
        if tags is not None:
            kept[prefix] = "\n".join(tags)
            kept |= {f"{prefix}/{key}": text for key, text in tags.items()}
        self.documents = kept

    def set_user_data(self, text: str | None) -> None:
        """Set the user data; None for none."""
        self._set("user-data", text)

    def set_spot_action(self, action: str | None, *, at: str = "") -> None:
        """Give the spot notice: `action` (terminate, stop, hibernate) at instant `at`; None takes it back."""
        self._set("meta-data/spot/instance-action", action and json.dumps({"action": action, "time": at}))

    def set_target_lifecycle_state(self, state: str | None) -> None:
        """Set where Auto Scaling wants the instance; None: it is in no group."""
        self._set("meta-data/autoscaling/target-lifecycle-state", state)

    def forget_tokens(self) -> None:
        """Make every token given so far void, as when the instance wakes from hibernation."""
        self._tokens.clear()

    def count(self, method: str, path: str = "") -> int:
        """Count the requests seen of a method, below a path (from /latest/ on)."""
        return sum(1 for seen in self.requests if seen[0] == method and seen[1].startswith(path))

    def start(self) -> FakeMetadataService:
        """Begin to listen."""
        service = self

        class Handler(_Handler):
            fake = service

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False  # so that stop waits for each
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake-metadata"
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """End every request and stop listening."""
        self._stopping.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def __enter__(self) -> FakeMetadataService:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _set(self, path: str, text: str | None) -> None:
        self.documents = {key: value for key, value in self.documents.items() if key != path}
        if text is not None:
            self.documents[path] = text

    def _answer_put(self, path: str, ttl: str | None, is_forwarded: bool) -> tuple[int, str]:
        if path != "api/token":
            return 405, ""
        if self.endpoint is Endpoint.TOO_MANY_HOPS:
            self._stopping.wait(_HANG_LIMIT_S)
            return 0, ""
        if is_forwarded:
            return 403, ""
        if ttl is None or not ttl.isdecimal() or not 1 <= int(ttl) <= 21_600:
            return 400, ""
        token = f"fake-{secrets.token_urlsafe(24)}"
        self._tokens[token] = clock.Deadline.after(int(ttl))
        return 200, token

    def _answer_get(self, path: str, token: str | None) -> tuple[int, str]:
        life = self._tokens.get(token or "")
        if life is None or life.is_passed:
            return 401, ""
        text = self.documents.get(path.rstrip("/"))
        return (404, "") if text is None else (200, text)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeMetadataService
    server_version = "fake-instance-metadata"
    sys_version = ""
    timeout = 5

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path).removeprefix("/latest/")
        special = {Endpoint.DISABLED: (403, ""), Endpoint.BROKEN: (500, "")}.get(self.fake.endpoint)
        ttl = self.headers.get(_TTL_HEADER)
        if special is not None:
            status, text = special
        elif self.command == "PUT":
            status, text = self.fake._answer_put(path, ttl, "X-Forwarded-For" in self.headers)
        else:
            status, text = self.fake._answer_get(path, self.headers.get("X-aws-ec2-metadata-token"))
        self.fake.requests.append((self.command, path, status))
        if status == 0:  # the answer is lost on its way
            self.close_connection = True
            return
        body = text.encode()
        self.send_response(status)
        if self.command == "PUT" and status == 200:
            self.send_header(_TTL_HEADER, ttl or "")
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: `requests` has it all."""
