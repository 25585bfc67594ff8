"""A fake of the EC2 instance metadata service on loopback: every document settable, every kind of trouble too.

It is the local provider's own service (version 2 only) with faults; it says that it is a fake
(`Server: fake-instance-metadata`). The hop limit is shown as a client sees it: the token's answer never arrives.

    with FakeMetadataService(instance_id="i-0123456789abcdef0") as service:
        service.set_spot_action("terminate", at="2030-01-01T00:00:00Z")
        MetadataClient(service.url).spot_action()
"""

from __future__ import annotations

import threading
from email.message import Message
from enum import StrEnum
from http.server import ThreadingHTTPServer
from types import TracebackType

from agent.fleet.local import metadata_service
from agent.fleet.local.metadata_service import Answer, MetadataHandler, MetadataService

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


class FakeMetadataService(MetadataService):
    """One instance's metadata service on a free port; a context manager, or `start` and `stop`.

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
        super().__init__(lambda: self.documents)
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
        self.documents = metadata_service.with_tags(self.documents, tags)

    def set_user_data(self, text: str | None) -> None:
        """Set the user data; None for none."""
        self._set("user-data", text)

    def set_spot_action(self, action: str | None, *, at: str = "") -> None:
        """Give the spot notice: `action` (terminate, stop, hibernate) at instant `at`; None takes it back."""
        self._set(*metadata_service.spot_action(action, at))

    def set_target_lifecycle_state(self, state: str | None) -> None:
        """Set where Auto Scaling wants the instance; None: it is in no group."""
        self._set(*metadata_service.target_lifecycle_state(state))

    def count(self, method: str, path: str = "") -> int:
        """Count the requests seen of a method, below a path (from /latest/ on)."""
        return sum(1 for seen in self.requests if seen[0] == method and seen[1].startswith(path))

    def start(self) -> FakeMetadataService:
        """Begin to listen."""
        service = self

        class Handler(_Handler):
            answers = service

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

    def answer(self, method: str, path: str, headers: Message[str, str]) -> Answer:
        """Answer as the endpoint is set to, and note the request."""
        answer = self._answer_as_set(method, path, headers)
        self.requests.append((method, path.removeprefix("/latest/"), answer.status))
        return answer

    def _answer_as_set(self, method: str, path: str, headers: Message[str, str]) -> Answer:
        if self.endpoint is Endpoint.DISABLED:
            return Answer(403)
        if self.endpoint is Endpoint.BROKEN:
            return Answer(500)
        if self.endpoint is Endpoint.TOO_MANY_HOPS and method == "PUT":
            self._stopping.wait(_HANG_LIMIT_S)
            return Answer(0)
        return super().answer(method, path, headers)

    def _set(self, path: str, text: str | None) -> None:
        self.documents = metadata_service.with_document(self.documents, path, text)


class _Handler(MetadataHandler):
    server_version = "fake-instance-metadata"

    def reply_to(self, answer: Answer) -> None:
        """Send an answer, or lose it on its way."""
        if answer.status == 0:
            self.close_connection = True
        else:
            super().reply_to(answer)
