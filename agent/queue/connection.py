"""Connections to Redis from one URL: plain, TLS, unix socket, ACL user, or a master found through sentinels."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from agent.errors import QueueUnavailable, SettingsError

# Long enough for a Redis that writes its snapshot on a busy disk, short enough that three tries fit a lease.
COMMAND_TIMEOUT_S = 5.0
_FORMS = (
    "expected redis://[user:password@]host[:port][/db], rediss:// likewise, unix:///path[?db=0] or "
    "sentinel://[user:password@]host[:port],.../service[/db]; write what is special in a password as %XX"
)


def connect(url: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> redis.Redis:
    """Return a client for `url`; nothing is sent before its first command.

    Args:
        url: redis://, rediss:// (TLS), unix://, or sentinel://[user:password@]host[:port],.../service[/db].
        timeout_s: for each command; a blocking one needs more than it blocks for.
    Raises: SettingsError when the URL can't be read.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(timeout_s, COMMAND_TIMEOUT_S),
        # The loops that use the connection know better when to try again, and count what failed.
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        # What others have put into our lists need not be UTF-8; it goes back as it came, or it would never leave.
        "encoding_errors": "surrogateescape",
    }
    if not url.startswith("unix://"):
        options["socket_keepalive"] = True
    try:
        if url.startswith("sentinel://"):
            return _through_sentinels(url, options)
        return redis.Redis.from_url(url, **options)
    except ValueError:
        # Without the error's text, which may quote a part of the password.
        raise SettingsError(f"redis_url can't be read: {_FORMS}") from None


def _through_sentinels(url: str, options: dict[str, Any]) -> redis.Redis:
    parts = urllib.parse.urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    addresses = [_address(host) for host in hosts.split(",")]
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise SettingsError("redis_url: a sentinel:// URL names the service: sentinel://host:26379/mymaster")
    user, _, password = credentials.partition(":")
    if credentials:
        options |= {
            "username": urllib.parse.unquote(user) or None,
            "password": urllib.parse.unquote(password) or None,
        }
    # One try each: another sentinel is asked instead, and the caller tries again.
    own_limits = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0, "retry": Retry(NoBackoff(), 0)}
    sentinel = Sentinel(addresses, sentinel_kwargs=own_limits)  # type: ignore[no-untyped-call]
    master: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        service, redis.Redis, db=int(database or 0), **options
    )
    return master


def _address(host: str) -> tuple[str, int]:
    """Read host, host:port, [IPv6] or [IPv6]:port."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = host.partition(":")
    if not name:
        raise ValueError("an address without a host")
    return name, int(port or 26379)


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Turn what redis-py raises into `QueueUnavailable`, which says what to look at."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise QueueUnavailable(f"Redis can't be used: {str(error) or type(error).__name__}") from error
