"""A store on each database, with the project's schema and nothing in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.store.engine import Store


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store on a fresh database; with connections for tests that run many threads."""
    store = Store(database_url, pool_size=16)
    yield store
    store.dispose()
