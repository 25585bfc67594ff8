"""Who makes a request: the session of a browser, or a program's token; signing in and out, slower after failures."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from fastapi import Request

from agent import log
from agent.config import Settings
from agent.console import password
from agent.model.person import Person, Role, Scope
from agent.store import sessions, tokens, users
from agent.store.engine import Store

# `bat_` tells people and scanners of leaked secrets what it is.
TOKEN_PREFIX = "bat_"  # noqa: S105 - what all of them begin with
_TOKEN_BYTES = 32
# Free failures; then each makes the wait for the next try twice as long, up to the longest.
_FREE_FAILURES = 5
_FIRST_WAIT_S = 2.0
_LONGEST_WAIT_S = 900.0
_REMEMBERED_S = 3600.0

_log = log.get("console")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedIn:
    """A session that has just begun: what the browser is to keep."""

    person: Person
    token: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """Why somebody is not let in, in words for them; `wait_s` when they have to wait for the next try."""

    why: str
    wait_s: float = 0.0


class People:
    """Knows everybody; thread-safe."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    @property
    def cookie(self) -> str:
        """The name of the cookie: with HTTPS one that no other host and no other path can set."""
        return "__Host-build-agent" if self.is_https else "build-agent"

    @property
    def is_https(self) -> bool:
        """Whether people reach the console by HTTPS."""
        return self._settings.console_url.startswith("https://")

    def identify(self, request: Request) -> Person | None:
        """Return who makes a request; a token, where one is sent, is all that counts."""
        header = request.headers.get("authorization")
        if header is not None:
            kind, _, token = header.partition(" ")
            return self._by_token(token.strip()) if kind.lower() == "bearer" else None
        token = request.cookies.get(self.cookie, "")
        found = self._session(token) if token else None
        return Person(name=found[0], role=found[1]) if found else None

    def sign_in(self, name: str, given: str, *, address: str, client: str) -> SignedIn | Refused:
        """Begin a session for who knows a password. Which of name and password was wrong is not told."""
        keys = [_failure_key("name", name), _failure_key("address", address)]
        wait_s = max(self._wait_s(key) for key in keys)
        if wait_s > 0:
            return Refused(why="too many failures to sign in", wait_s=wait_s)
        found = users.password_hash_of(self._store, name)
        if not password.is_right(given, found) or found is None:
            sessions.note_failure(self._store, keys, kept_s=_REMEMBERED_S)
            _log.warning("console.sign_in_failed", address=address)
            return Refused(why="name and password do not fit each other")
        if password.is_outdated(found):
            users.renew_hash(self._store, name, password.make(given))
        # Not the address's: others behind it may go on guessing.
        sessions.forget_failures(self._store, keys[0])
        return self.begin(name, address=address, client=client, via="password")

    def begin(self, name: str, *, address: str, client: str, via: str) -> SignedIn:
        """Begin a session for somebody who has proved who they are."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        sessions.begin(
            self._store,
            name,
            digest(token),
            address=address,
            client=client,
            longest_s=self._settings.console_session_s,
            via=via,
        )
        return SignedIn(person=Person(name=name, role=users.get(self._store, name).role), token=token)

    def sign_out(self, request: Request) -> None:
        """End the session that a request comes in."""
        if token := request.cookies.get(self.cookie):
            sessions.end(self._store, digest(token))

    def _session(self, token: str) -> tuple[str, Role] | None:
        return sessions.find(self._store, digest(token), idle_s=self._settings.console_idle_s)

    def _by_token(self, token: str) -> Person | None:
        found = tokens.find(self._store, digest(token)) if token.startswith(TOKEN_PREFIX) else None
        if found is None:
            return None
        it, role = found
        return Person(
            name=it.user_name,
            role=Scope.role_of(it.scopes, role),
            token_id=it.id,
            may_submit=Scope.BUILDS in it.scopes and role.includes(Role.OPERATOR),
        )

    def _wait_s(self, key: str) -> float:
        count, ago_s = sessions.failures(self._store, key, within_s=_REMEMBERED_S)
        if count < _FREE_FAILURES:
            return 0.0
        wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** (count - _FREE_FAILURES))
        return max(0.0, wait_s - ago_s)


def make_token() -> str:
    """Return a token for a program; it is shown once, and its digest kept."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest(token: str) -> str:
    """Return what is on record of a token. They are random and long: nothing slower is needed than a hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def _failure_key(kind: str, value: str) -> str:
    return hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()
