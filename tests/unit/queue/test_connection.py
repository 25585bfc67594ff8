"""Redis URLs: every form makes the client it says, and none that can't be read repeats its password."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from redis.sentinel import SentinelConnectionPool

from agent.errors import QueueUnavailable, SettingsError
from agent.queue.connection import COMMAND_TIMEOUT_S, connect, reaching


def options(url: str) -> dict[str, Any]:
    return dict(connect(url).connection_pool.connection_kwargs)


def sentinels(url: str) -> list[tuple[str, int]]:
    pool = connect(url).connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    kwargs = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    return [(item["host"], item["port"]) for item in kwargs]


def test_plain_url() -> None:
    found = options("redis://queue.example:6380/3")
    assert (found["host"], found["port"], found["db"]) == ("queue.example", 6380, 3)
    assert found["socket_timeout"] == COMMAND_TIMEOUT_S
    assert found["socket_keepalive"] is True


def test_user_and_password_are_read_with_their_escapes() -> None:
    found = options("redis://agent:p%40ss%2Fword@queue.example/0")
    assert (found["username"], found["password"]) == ("agent", "p@ss/word")


def test_tls_url() -> None:
    pool = connect("rediss://queue.example:6390/0").connection_pool
    assert pool.connection_class is redis.SSLConnection


def test_unix_socket() -> None:
    found = options("unix:///run/redis.sock?db=2")
    assert (found["path"], found["db"]) == ("/run/redis.sock", 2)


def test_connecting_waits_no_longer_than_a_command_though_a_blocking_one_may() -> None:
    found = dict(connect("redis://queue.example", timeout_s=25).connection_pool.connection_kwargs)
    assert (found["socket_timeout"], found["socket_connect_timeout"]) == (25, COMMAND_TIMEOUT_S)


def test_commands_are_not_repeated_behind_the_callers_back() -> None:
    assert options("redis://queue.example")["retry"].get_retries() == 0


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("one.example", [("one.example", 26379)]),
        ("one.example:5000,two.example", [("one.example", 5000), ("two.example", 26379)]),
        ("[::1]:5000,[fe80::2]", [("::1", 5000), ("fe80::2", 26379)]),
    ],
)
def test_sentinels_are_read(hosts: str, expected: list[tuple[str, int]]) -> None:
    assert sentinels(f"sentinel://{hosts}/mymaster/2") == expected


def test_sentinel_url_names_service_database_and_credentials() -> None:
    pool = connect("sentinel://agent:p%40ss@one.example:26379,two.example/mymaster/2").connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "mymaster"
    found = pool.connection_kwargs
    assert (found["db"], found["username"], found["password"]) == (2, "agent", "p@ss")
    assert found["socket_timeout"] == COMMAND_TIMEOUT_S


def test_sentinel_url_without_a_user_or_database() -> None:
    found = options("sentinel://:secret@one.example/mymaster")
    assert (found["db"], found["username"], found["password"]) == (0, None, "secret")


def test_sentinel_url_without_a_service_says_what_is_missing() -> None:
    with pytest.raises(SettingsError, match=r"names the service: sentinel://host:26379/mymaster"):
        connect("sentinel://one.example:26379")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/x@queue.example",  # an unescaped slash makes the password a port
        "redis://:hunter2@queue.example:port/0",
        "sentinel://:hunter2@one.example:hunter2/mymaster",
        "sentinel://:hunter2@one.example/mymaster/hunter2",
        "sentinel://:hunter2@/mymaster",
        "hunter2",
        "http://:hunter2@queue.example",
    ],
)
def test_url_that_can_not_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="redis_url can't be read: expected redis://") as caught:
        connect(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_faults_of_redis_are_told_as_one() -> None:
    for fault in (redis.TimeoutError("slow"), redis.ConnectionError("gone"), OSError("no route")):
        with pytest.raises(QueueUnavailable, match=f"Redis can't be used: {fault}"), reaching():
            raise fault
    with pytest.raises(QueueUnavailable, match="Redis can't be used: TimeoutError"), reaching():
        raise redis.TimeoutError


def test_other_faults_are_not_taken_for_redis() -> None:
    with pytest.raises(KeyError), reaching():
        raise KeyError("a mistake of ours")
