"""The schema: made by migrations alone, by any number of upgrades at once, and checked before use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import CheckConstraint, inspect, text

from agent.cli.db import db
from agent.errors import SchemaMismatch
from agent.store import builds, migrate, schema, tables
from agent.store.engine import Store
from tests.integration.conftest_store import race
from tests.services import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/empty.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.create_database(is_migrated=False)


@dataclass
class Settings:
    """What the commands need of the command line's context."""

    url: str

    def load(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(database_url=self.url))


def test_upgrades_at_once_make_one_schema(empty_url: str) -> None:
    stores = [Store(empty_url) for _ in range(4)]
    try:
        results = race(*(lambda store=store: migrate.upgrade(store) for store in stores))
        assert results == [None] * 4
        schema.check(stores[0])
        with stores[0].read() as connection:
            assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    finally:
        for store in stores:
            store.dispose()


def test_upgrade_that_fails_leaves_nothing(empty_url: str) -> None:
    store = Store(empty_url)
    with store.begin() as connection:
        # In the way of the last table that the first revision makes.
        connection.execute(text("CREATE TABLE deploy_locks (a integer)"))
    with pytest.raises(Exception, match="already exists"):
        migrate.upgrade(store)
    with store.read() as connection:
        found = set(inspect(connection).get_table_names())
    store.dispose()
    assert found == {"deploy_locks"}


def test_migrations_make_what_the_code_knows(store: Store) -> None:
    with store.read() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, tables.metadata) == []


def test_migrations_make_the_checks_that_the_code_knows(store: Store) -> None:
    with store.read() as connection:
        for table in tables.metadata.sorted_tables:
            known = {str(it.name) for it in table.constraints if isinstance(it, CheckConstraint)}
            made = {str(it["name"]) for it in inspect(connection).get_check_constraints(table.name)}
            assert made == known


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", "agent.store:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_database_without_schema_is_told_from_one_with(empty_url: str) -> None:
    store = Store(empty_url)
    assert schema.current(store) is None
    with pytest.raises(SchemaMismatch, match="db upgrade"):
        schema.check(store)
    with pytest.raises(SchemaMismatch, match="db upgrade"):
        builds.queued(store)
    store.dispose()


@pytest.mark.parametrize(("revision", "advice"), [("0000", "db upgrade"), ("9999", "newer agent")])
def test_schema_of_another_version_is_refused(store: Store, revision: str, advice: str) -> None:
    with store.begin() as connection:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    with pytest.raises(SchemaMismatch, match=advice):
        schema.check(store)
    if revision == "9999":
        with pytest.raises(SchemaMismatch, match=advice):
            migrate.upgrade(store)


def test_commands_upgrade_check_and_tell(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # the migrations are found from anywhere

    def run(command: str) -> tuple[int, str]:
        result = CliRunner().invoke(db, [command], obj=Settings(empty_url))
        return result.exit_code, result.output.strip()

    assert run("current") == (0, "none")
    assert run("check")[0] != 0
    assert run("upgrade") == (0, "the schema went from nothing to 0001")
    assert run("upgrade") == (0, "the schema is up to date: 0001")
    assert run("check") == (0, "the schema is the one this version needs: 0001")
    assert run("current") == (0, "0001")
