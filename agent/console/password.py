"""Passwords: hashed with Argon2id, and checked in the same time whether or not there is such a person."""

from __future__ import annotations

from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from agent.errors import SettingsError

SHORTEST = 10
# Argon2 takes any length; a body of megabytes shall not keep a processor busy.
LONGEST = 1024

_hasher = PasswordHasher()


def make(password: str) -> str:
    """Return the hash of a password. Raises: SettingsError for one that is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise SettingsError(
            f"a password has {SHORTEST} to {LONGEST} characters; this one has {len(password)}"
        )
    return _hasher.hash(password)


def is_right(password: str, password_hash: str | None) -> bool:
    """Whether a password is the one of a hash; against none the same work is done, and nothing is right."""
    try:
        _hasher.verify(password_hash or _nobodys(), password[:LONGEST])
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Whether a hash was made with weaker parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)


@cache
def _nobodys() -> str:
    return _hasher.hash("nobody signs in with this")
