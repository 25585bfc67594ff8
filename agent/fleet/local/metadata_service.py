"""A metadata service as EC2's instances have it: version 2 only, answered from a set of documents.

Keeps to what EC2 documents: a token by PUT with its life in seconds (1 to 21600), 400 for another life, 403 for a request
that a proxy forwarded, 401 for one without a token that holds, 404 for a document that is not there. It names itself in
`Server`. Source: "Use the Instance Metadata Service to access instance metadata" (EC2 User Guide).
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from agent import clock
from agent.fleet.local import state

Documents = Mapping[str, str]
"""Texts by path below /latest/, such as "meta-data/instance-id" or "user-data"."""

TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105 - a name
_TTL_LIMIT_S = 21_600
_TOKENS_LIMIT = 1000
_TAGS = "meta-data/tags/instance"
_BODY_LIMIT_BYTES = 4096


class Answer(NamedTuple):
    """What a request gets."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class MetadataService:
    """Answers requests from what `documents` returns at that moment. Safe for any number of threads."""

    def __init__(self, documents: Callable[[], Documents]) -> None:
        self._documents = documents
        self._tokens: dict[str, clock.Deadline] = {}
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, headers: Message[str, str]) -> Answer:
        """Answer a request; `path` as it was sent, `headers` without regard to case."""
        name = unquote(path.partition("?")[0]).removeprefix("/latest/")
        if method == "PUT":
            if name != "api/token":
                return Answer(405)
            return self._new_token(headers.get(TTL_HEADER), is_forwarded="X-Forwarded-For" in headers)
        if not self._holds(headers.get(TOKEN_HEADER)):
            return Answer(401)
        text = self._documents().get(name.rstrip("/"))
        return Answer(404) if text is None else Answer(200, text)

    def forget_tokens(self) -> None:
        """Make every token given so far void, as when an instance wakes from hibernation."""
        with self._lock:
            self._tokens.clear()

    def _new_token(self, ttl: str | None, *, is_forwarded: bool) -> Answer:
        if is_forwarded:
            return Answer(403)
        if ttl is None or not ttl.isdecimal() or not 1 <= int(ttl) <= _TTL_LIMIT_S:
            return Answer(400)
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._tokens = {key: life for key, life in self._tokens.items() if not life.is_passed}
            while (
                len(self._tokens) >= _TOKENS_LIMIT
            ):  # the oldest goes: a machine's users must not fill our memory
                del self._tokens[next(iter(self._tokens))]
            self._tokens[token] = clock.Deadline.after(int(ttl))
        return Answer(200, token, ((TTL_HEADER, ttl),))

    def _holds(self, token: str | None) -> bool:
        with self._lock:
            life = self._tokens.get(token or "")
        return life is not None and not life.is_passed


class DocumentFile:
    """Documents kept in a JSON file, which another process may replace at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._documents: Documents = {}

    def __call__(self) -> Documents:
        """Return what the file holds now; it is only read again when it was replaced."""
        try:
            found = self._path.stat()
        except OSError:
            return self._documents
        seen = (found.st_ino, found.st_mtime_ns)
        if seen != self._seen:
            read = state.read_json(self._path)
            if read is not None:
                self._documents, self._seen = read, seen
        return self._documents


def with_tags(documents: Documents, tags: Mapping[str, str] | None) -> dict[str, str]:
    """Return documents with these tags open to the machine; `None` for InstanceMetadataTags=disabled."""
    kept = {path: text for path, text in documents.items() if not path.startswith(_TAGS)}
    if tags is not None:
        kept[_TAGS] = "\n".join(tags)
        kept |= {f"{_TAGS}/{key}": text for key, text in tags.items()}
    return kept


def with_document(documents: Documents, path: str, text: str | None) -> dict[str, str]:
    """Return documents with one of them set; `None` takes it away."""
    kept = {key: value for key, value in documents.items() if key != path}
    return kept if text is None else {**kept, path: text}


def spot_action(action: str | None, at: str) -> tuple[str, str | None]:
    """Return path and text of the spot notice: `action` (terminate, stop, hibernate) at an instant; `None` for none."""
    return "meta-data/spot/instance-action", action and json.dumps({"action": action, "time": at})


def target_lifecycle_state(target: str | None) -> tuple[str, str | None]:
    """Return path and text of where Auto Scaling wants the machine; `None`: it is in no group."""
    return "meta-data/autoscaling/target-lifecycle-state", target


def server(service: MetadataService, host: str, port: int) -> ThreadingHTTPServer:
    """Return an HTTP server, bound and not yet serving."""

    class Handler(MetadataHandler):
        answers = service

    return ThreadingHTTPServer((host, port), Handler)


class MetadataHandler(BaseHTTPRequestHandler):
    """One connection. A subclass sets `answers`."""

    answers: MetadataService
    server_version = "local-instance-metadata"
    sys_version = ""
    timeout = 5

    def do_PUT(self) -> None:
        """Give a token."""
        length = self.headers.get("Content-Length") or "0"
        self.rfile.read(min(int(length) if length.isdecimal() else 0, _BODY_LIMIT_BYTES))
        self._reply()

    def do_GET(self) -> None:
        """Give a document."""
        self._reply()

    def reply_to(self, answer: Answer) -> None:
        """Send an answer."""
        body = answer.body.encode()
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reply(self) -> None:
        self.reply_to(self.answers.answer(self.command, self.path, self.headers))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: user data may be in it."""
