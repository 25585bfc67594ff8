"""Farms for the acceptance tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.queue.private import PrivateRedis
from agent.store.engine import Store
from tests.acceptance.farm import Farm
from tests.acceptance.fleet_record import USER
from tests.acceptance.terminal import Cli
from tests.integration.fleet_world import put_image


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


@pytest.fixture
def fleet_cli(sqlite_farm: Farm, tmp_path: Path) -> Iterator[Cli]:
    """The command line of a fleet with the images `old` and `new`, and no pool; its user is known."""
    for version in ("old", "new"):
        put_image(sqlite_farm.store, version, f"p-{version}")
    with Cli(sqlite_farm, tmp_path) as cli:
        cli.environment["SUDO_USER"] = USER
        yield cli


@pytest.fixture
def fleet_store(sqlite_farm: Farm, fleet_cli: Cli) -> Store:
    """The database of `fleet_cli`."""
    return sqlite_farm.store
