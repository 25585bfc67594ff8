"""The webhook that begins deployments: GitHub's form, signed with a secret that both sides know.

Owns what is believed: the signature over the body (HMAC-SHA-256, compared in constant time), one body once, pushes to the
branches that are deployed, the repository that is deployed. Source: "Validating webhook deliveries" (GitHub Docs).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from agent import log
from agent.errors import AgentError, AgentFailed
from agent.model.fleet import Deployment
from agent.store import deployments
from agent.store.engine import Store

PATH = "/webhook/github"
# GitHub's own limit is 25 MB; a push has no need of a tenth of it.
_BODY_BYTES = 2 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_TIMEOUT_S = 10.0

_log = log.get("webhook")


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What is deployed, and the secret that says so."""

    secret: str
    repository: str
    branches: Sequence[str]
    pool: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status, and what is said with it."""

    status: int
    document: dict[str, Any]


def sign(secret: str, body: bytes) -> str:
    """Return the header's value that goes with a body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def receive(
    terms: Terms, *, event: str, signature: str, delivery: str, body: bytes, begin: Callable[..., Deployment]
) -> Answer:
    """Answer a delivery; `begin` puts a deployment on record, or finds the one that the same body began."""
    if not hmac.compare_digest(sign(terms.secret, body).encode(), signature.encode("utf-8", "replace")):
        _log.warning("webhook.refused", "the signature is not the secret's", delivery=delivery[:64])
        return Answer(401, {"error": "the signature is missing or wrong"})
    if event == "ping":
        return Answer(200, {"ok": True})
    if event != "push":
        return Answer(202, {"ignored": f"event {event[:64]!r}: only a push is deployed"})
    try:
        push = json.loads(body)
        branch, commit = str(push["ref"]), str(push["after"])
        name = str(push["repository"]["full_name"])
    except (ValueError, KeyError, TypeError):
        return Answer(
            400, {"error": "not a push in GitHub's form: ref, after and repository.full_name are needed"}
        )
    branch = branch.removeprefix("refs/heads/")
    if ignored := _why_ignored(terms, branch, commit, name):
        return Answer(202, {"ignored": ignored})
    made = begin(
        pool=terms.pool,
        repository=terms.repository,
        commit=commit,
        branch=branch,
        by=f"webhook, delivery {delivery[:64]}",
        # The delivery's own id is not signed, so whoever replays a body could give it another; the body can't change.
        delivery_id=hashlib.sha256(body).hexdigest(),
    )
    _log.info("webhook.accepted", deployment=made.id, commit=commit, delivery=delivery[:64])
    return Answer(202, {"deployment": made.id})


def _why_ignored(terms: Terms, branch: str, commit: str, name: str) -> str | None:
    if not re.search(rf"(?:^|[/:]){re.escape(name)}(?:\.git)?/?$", terms.repository):
        return f"repository {name[:200]!r} is not the one that is deployed"
    if branch not in terms.branches:
        return f"branch {branch[:200]!r} is not deployed"
    if not _COMMIT.fullmatch(commit) or set(commit) == {"0"}:
        return "the branch was deleted"
    return None


class Webhook:
    """Listens for deliveries on an address of its own."""

    def __init__(self, address: str, terms: Terms, store: Store) -> None:
        """Bind to `address`, host:port. Raises: AgentFailed when it can't be had."""
        host, _, port = address.rpartition(":")
        attributes = {"terms": terms, "begin": lambda **words: deployments.begin(store, **words)}
        handler = type("Handler", (_Handler,), attributes)
        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), handler)
        except OSError as error:
            raise AgentFailed(f"the webhook can't listen on {address}: {error.strerror}") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    terms: ClassVar[Terms]
    begin: ClassVar[Callable[..., Deployment]]
    # Of a client that sends nothing.
    timeout = _TIMEOUT_S
    server_version = "build-agent"
    sys_version = ""

    def do_POST(self) -> None:
        """Take a delivery."""
        if self.path != PATH:
            self._reply(Answer(404, {"error": f"there is only {PATH}"}))
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _BODY_BYTES:
            self._reply(Answer(413, {"error": f"a body of {_BODY_BYTES} bytes at most, its length given"}))
            return
        body = self.rfile.read(int(length))
        try:
            answer = receive(
                self.terms,
                event=self.headers.get("X-GitHub-Event", ""),
                signature=self.headers.get("X-Hub-Signature-256", ""),
                delivery=self.headers.get("X-GitHub-Delivery", ""),
                body=body,
                begin=type(self).begin,
            )
        except AgentError as error:
            _log.warning("webhook.failed", str(error))
            answer = Answer(503, {"error": "try again later"})
        self._reply(answer)

    def _reply(self, answer: Answer) -> None:
        data = json.dumps(answer.document).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what matters is logged where it happens."""
