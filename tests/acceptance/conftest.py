"""Farms for the acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.queue.private import PrivateRedis
from tests.acceptance.farm import Farm


@pytest.fixture
def farm(tmp_path: Path, redis_server: PrivateRedis, database_url: str) -> Iterator[Farm]:
    """A farm on each kind of database."""
    farm = Farm(tmp_path / "farm", redis_url=redis_server.url, database_url=database_url)
    yield farm
    farm.close()


@pytest.fixture
def postgres_farm(tmp_path: Path, redis_server: PrivateRedis, postgres_url: str) -> Iterator[Farm]:
    """A farm on PostgreSQL, for what does not depend on the kind of database."""
    farm = Farm(tmp_path / "farm", redis_url=redis_server.url, database_url=postgres_url)
    yield farm
    farm.close()


@pytest.fixture
def sqlite_farm(tmp_path: Path, redis_server: PrivateRedis, sqlite_url: str) -> Iterator[Farm]:
    """A farm on SQLite: the quickest to make."""
    farm = Farm(tmp_path / "farm", redis_url=redis_server.url, database_url=sqlite_url)
    yield farm
    farm.close()
