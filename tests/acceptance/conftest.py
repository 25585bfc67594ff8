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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run an acceptance test that failed once more, and show that it was (`RERUN` in the summary).

    Here are many real processes, with real time-outs, on a machine that others use too: what fails only once is
    told, and looked into; what fails twice is broken. Unit and integration tests have no second try.
    """
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.flaky(reruns=1))
