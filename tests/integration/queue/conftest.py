"""A real Redis, and a database that costs next to nothing: what the tests of the queue stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from agent.queue.carrier import Carrier
from agent.queue.connection import connect
from agent.store.engine import Store


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    """A client of an empty Redis."""
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def carrier(connection: redis.Redis) -> Carrier:
    """The lists of an empty Redis."""
    return Carrier(connection)


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    """A store on SQLite: the store's own tests hold both databases to be alike."""
    store = Store(sqlite_url, pool_size=8)
    yield store
    store.dispose()
