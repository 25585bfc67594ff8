"""People who use the console, what they may do, and what they sign in with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Role(StrEnum):
    """What a person may do; each may do what those before it may, too.

    A viewer sees everything but people. An operator acts on builds, servers, images, the fleet and alarms. An admin looks
    after people as well.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Whether who has this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class Scope(StrEnum):
    """What a token may be used for, within the role of whose it is.

    `read` everything but people; `builds` as well: submit, cancel and retry them; `fleet`: whatever an operator does;
    `admin`: all that its person may.
    """

    READ = "read"
    BUILDS = "builds"
    FLEET = "fleet"
    ADMIN = "admin"

    @staticmethod
    def role_of(scopes: Collection[str], role: Role) -> Role:
        """Return the role that a token gives to whoever holds it."""
        allowed = Role.VIEWER
        if Scope.FLEET in scopes:
            allowed = Role.OPERATOR
        if Scope.ADMIN in scopes:
            allowed = Role.ADMIN
        return allowed if role.includes(allowed) else role


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """Somebody who may sign in, here with a password, or at `issuer`, who calls them `subject`."""

    name: str
    role: Role
    has_password: bool
    issuer: str | None
    subject: str | None
    created_at: datetime
    created_by: str
    changed_at: datetime
    changed_by: str
    disabled_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A browser that is signed in; `key` is the beginning of its token's hash, enough to name it."""

    key: str
    user_name: str
    address: str
    client: str
    created_at: datetime
    seen_at: datetime
    expires_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiToken:
    """What a program signs in with, for a person: it may do no more than `scopes` say, and never more than they may."""

    id: str
    name: str
    user_name: str
    scopes: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Who makes a request, and what they may do in it. `token_id` is set for a program that does it for them.

    `may_submit`: a token that is for builds alone may submit, cancel and retry them, though its role is a viewer's.
    """

    name: str
    role: Role
    token_id: str | None = None
    may_submit: bool = False

    @property
    def actor(self) -> str:
        """How the audit names them."""
        return self.name if self.token_id is None else f"{self.name}, token {self.token_id}"
