"""The schema: made by migrations alone, by any number of upgrades at once, and fit for older agents, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import CheckConstraint, delete, inspect, text

from agent.cli.db import db
from agent.errors import SchemaMismatch, StateConflict
from agent.store import attempts, builds, migrate, schema, servers, tables, tables_fleet  # noqa: F401
from agent.store.engine import Store
from tests.integration.conftest_store import ended, race, running
from tests.later import ADDING, RENAMING, LaterVersion
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
    assert _scripts().get_heads() == [schema.HEAD]


def test_database_without_schema_is_told_from_one_with(empty_url: str) -> None:
    store = Store(empty_url)
    assert schema.current(store) is None
    with pytest.raises(SchemaMismatch, match="db upgrade"):
        schema.check(store)
    with pytest.raises(SchemaMismatch, match="db upgrade"):
        builds.queued(store)
    store.dispose()


def test_schema_of_an_older_version_is_refused(store: Store) -> None:
    with store.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(SchemaMismatch, match="db upgrade"):
        schema.check(store)


def test_commands_upgrade_check_and_tell(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # the migrations are found from anywhere
    run = partial(_run, empty_url)
    assert run("current") == (0, "none")
    assert run("check")[0] != 0
    went = f"the schema went from nothing to {schema.HEAD}"
    assert run("upgrade") == (0, went)
    assert run("upgrade") == (0, f"the schema is up to date: {schema.HEAD}")
    assert run("check") == (0, f"the schema is the one this version needs: {schema.HEAD}")
    assert run("current") == (0, schema.HEAD)
    assert went in (Path(__file__).parents[2] / "README.md").read_text()


def _run(url: str, command: str, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(db, [command, *options], obj=Settings(url))
    said = str(result.exception) if result.exception is not None else result.output.strip()
    return result.exit_code, said


# A database that a later version has upgraded, and this one: an older image that was gone back to.


def test_schema_of_a_later_version_that_only_adds_serves_this_one_too(
    database_url: str, tmp_path: Path
) -> None:
    later = LaterVersion(tmp_path / "later", ADDING)
    done = later.command("db", "upgrade", database_url=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"the schema went from {schema.HEAD} to {later.revision}"
    words = (
        f"the schema is a later version's, {later.revision}, and works with agents from schema "
        f"{_declared(schema.HEAD)} on, this one among them"
    )
    assert _run(database_url, "check") == (0, words)
    assert _run(database_url, "upgrade") == (0, words)
    assert json.loads(_run(database_url, "check", "--json")[1]) == {
        "current": later.revision,
        "needed": schema.HEAD,
        "compatible_from": _declared(schema.HEAD),
    }
    store = Store(database_url)
    ref = running(store)
    assert attempts.end(store, ref, ended()).applied
    assert servers.get(store, "server-1").slots == 2
    store.dispose()


def test_later_version_that_shuts_this_one_out_asks_and_is_then_obeyed(
    database_url: str, tmp_path: Path
) -> None:
    later = LaterVersion(tmp_path / "later", RENAMING, compatible_from=LaterVersion.revision)
    refused = later.command("db", "upgrade", database_url=database_url)
    assert refused.returncode == StateConflict.exit_code
    assert "--lock-out-older" in refused.stderr
    assert _run(database_url, "check") == (0, f"the schema is the one this version needs: {schema.HEAD}")
    allowed = later.command("db", "upgrade", "--lock-out-older", database_url=database_url)
    assert (allowed.returncode, allowed.stderr) == (0, "")
    store = Store(database_url)
    for use in (schema.check, migrate.upgrade):
        with pytest.raises(SchemaMismatch, match=f"from schema {later.revision} on.*use a newer agent"):
            use(store)
    store.dispose()
    assert later.command("db", "check", database_url=database_url).returncode == 0


def test_version_that_shuts_older_ones_out_needs_no_leave_on_an_empty_database(
    empty_url: str, tmp_path: Path
) -> None:
    later = LaterVersion(tmp_path / "later", RENAMING, compatible_from=LaterVersion.revision)
    assert later.command("db", "upgrade", database_url=empty_url).returncode == 0


def test_schema_that_does_not_say_how_old_agents_may_be_is_for_its_own_alone(store: Store) -> None:
    with store.begin() as connection:
        connection.execute(delete(tables.schema_compatibility))
    assert schema.check(store).revision == schema.HEAD
    with store.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="newer agent"):
        schema.check(store)


# Migrations only add, or declare that they do more.


def test_what_each_migration_declares_never_goes_back() -> None:
    revisions = sorted(it.revision for it in _scripts().walk_revisions())
    declared = [_declared(revision) for revision in revisions]
    assert declared == sorted(declared)
    assert all(oldest <= revision for oldest, revision in zip(declared, revisions, strict=True))


def test_agents_from_the_declared_schema_on_find_what_they_know(empty_url: str) -> None:
    store = Store(empty_url)
    seen: list[Shape] = []
    for revision in sorted(it.revision for it in _scripts().walk_revisions()):
        with store.begin() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        if revision >= _declared(schema.HEAD):
            seen.append(Shape.of(store))
    store.dispose()
    assert [complaint for before in seen for complaint in seen[-1].complaints(before)] == []


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("ALTER TABLE servers ADD COLUMN more integer", None),
        ("ALTER TABLE servers ADD COLUMN more integer NOT NULL DEFAULT 1", None),
        ("CREATE TABLE more (id integer)", None),
        ("CREATE INDEX more_idx ON servers (name)", None),
        ("ALTER TABLE servers RENAME COLUMN slots TO capacity", "servers.slots"),
        ("DROP VIEW output_lines", "output_lines"),
        ("DROP TABLE deploy_locks", "deploy_locks"),
        ("CREATE UNIQUE INDEX more_idx ON servers (name)", "more_idx"),
        ("ALTER TABLE servers ADD COLUMN more integer REFERENCES orders (id)", "servers: a new rule"),
        ("ALTER TABLE servers ADD COLUMN more integer CHECK (more > slots)", "servers: a new rule"),
    ],
)
def test_what_only_adds_is_told_from_what_shuts_out(
    store: Store, statement: str, complaint: str | None
) -> None:
    before = Shape.of(store)
    with store.begin() as connection:
        connection.execute(text(statement))
    complaints = Shape.of(store).complaints(before)
    assert (complaints == []) if complaint is None else (complaint in " ".join(complaints))


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("ALTER TABLE servers ADD COLUMN more integer NOT NULL", "servers.more"),
        ("ALTER TABLE servers ALTER COLUMN state_reason SET NOT NULL", "servers.state_reason"),
        ("ALTER TABLE servers ALTER COLUMN slots TYPE text", "servers.slots"),
        ("ALTER TABLE servers ADD UNIQUE (name)", "servers"),
    ],
)
def test_what_shuts_out_is_seen_where_sqlite_could_not_do_it(
    postgres_url: str, statement: str, complaint: str
) -> None:
    store = Store(postgres_url)
    before = Shape.of(store)
    with store.begin() as connection:
        connection.execute(text(statement))
    assert complaint in " ".join(Shape.of(store).complaints(before))
    store.dispose()


@dataclass(frozen=True)
class Shape:
    """What an agent's statements depend on: (type, may be null, may be left out) of each column; rules of each table."""

    columns: Mapping[str, Mapping[str, tuple[str, bool, bool]]]
    rules: Mapping[str, set[str]]

    @classmethod
    def of(cls, store: Store) -> Self:
        with store.read() as connection:
            seen = inspect(connection)
            tables_ = set(seen.get_table_names()) - {"alembic_version"}
            return cls(
                columns={
                    name: {
                        it["name"]: (
                            str(it["type"]),
                            bool(it["nullable"]),
                            bool(
                                it["nullable"] or it["default"] is not None or it.get("autoincrement") is True
                            ),
                        )
                        for it in seen.get_columns(name)
                    }
                    for name in tables_ | set(seen.get_view_names())
                },
                rules={
                    name: {
                        str(rule)
                        for rule in [
                            *(f"unique {it['name']}" for it in seen.get_indexes(name) if it["unique"]),
                            *(f"unique {it['name']}" for it in seen.get_unique_constraints(name)),
                            *(f"check {it['sqltext']}" for it in seen.get_check_constraints(name)),
                            *(f"key {it['constrained_columns']}" for it in seen.get_foreign_keys(name)),
                        ]
                    }
                    for name in tables_
                },
            )

    def complaints(self, before: Shape) -> list[str]:
        """Return what an agent that knows `before` could not bear here."""
        found = []
        for table, known in before.columns.items():
            here = self.columns.get(table)
            if here is None:
                found.append(f"{table} is gone")
                continue
            found += [
                f"{table}.{name} was {was}, is {here.get(name)}"
                for name, was in known.items()
                if here.get(name) != was
            ]
            found += [
                f"{table}.{name} can't be left out"
                for name in here.keys() - known.keys()
                if not here[name][2]
            ]
        for table, rules in before.rules.items():
            found += [f"{table}: a new rule, {rule}" for rule in self.rules.get(table, set()) - rules]
        return found


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "agent.store:migrations")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _declared(revision: str) -> str:
    return str(_scripts().get_revision(revision).module.compatible_from)
