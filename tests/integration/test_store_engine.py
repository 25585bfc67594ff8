"""The connection: what goes wrong is told apart, and nothing waits without end."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from agent import clock
from agent.errors import SettingsError, StoreRejected, StoreUnavailable
from agent.model.server import ServerState
from agent.store import builds, postgres, servers, tables
from agent.store.engine import Store
from tests.integration.conftest_store import beat, lose, make_build, make_server
from tests.services import PostgresServer, free_port, wait_until


@pytest.fixture
def pg(postgres_url: str) -> Iterator[Store]:
    """A store on PostgreSQL."""
    store = Store(postgres_url)
    yield store
    store.dispose()


def test_commits_what_went_well_and_undoes_what_did_not(store: Store) -> None:
    make_server(store)
    with store.begin() as connection:
        connection.execute(update(tables.servers).values(name="first"))
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(store)
    assert servers.get(store, "server-1").name == "first"


def _write_and_fail(store: Store) -> None:
    with store.begin() as connection:
        connection.execute(update(tables.servers).values(name="second"))
        raise ZeroDivisionError


def test_reader_can_not_write(pg: Store) -> None:
    make_server(pg)
    with pytest.raises(StoreUnavailable, match="read-only"), pg.read() as connection:
        connection.execute(update(tables.servers).values(name="other"))


def test_data_that_breaks_a_rule_is_rejected(store: Store) -> None:
    make_build(store)
    with pytest.raises(StoreRejected), store.begin() as connection:
        connection.execute(update(tables.builds).values(state="ended"))
    order = {"server_id": "nobody", "kind": "drain", "given_by": "ann", "created_at": datetime.now(UTC)}
    with pytest.raises(StoreRejected), store.begin() as connection:
        connection.execute(insert(tables.orders).values(order))


def test_naive_datetime_is_rejected(store: Store) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - the fault
    with pytest.raises(StoreRejected, match="no time zone"):
        builds.list_builds(store, before=(naive, "x"))


def test_instants_come_back_in_utc_to_the_microsecond(store: Store) -> None:
    make_server(store)
    at = datetime.fromisoformat("2026-05-04T03:02:01.000007+05:30")
    with store.begin() as connection:
        connection.execute(update(tables.servers).values(drain_deadline_at=at))
    found = servers.get(store, "server-1").drain_deadline_at
    assert found == at
    assert found is not None
    assert found.tzinfo is UTC


def test_f04_database_that_is_not_there_is_unavailable_and_may_come_back(
    pg: Store, postgres_server: PostgresServer
) -> None:
    make_server(pg)
    postgres_server.stop()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            beat(pg)
    with pytest.raises(StoreUnavailable):
        pg.ping(1.0)
    postgres_server.start()
    wait_until(lambda: _answers(pg))
    assert beat(pg).is_current


def _answers(store: Store) -> bool:
    try:
        store.ping(1.0)
    except StoreUnavailable:
        return False
    return True


def test_f04_frozen_database_holds_nobody_for_long(pg: Store, postgres_server: PostgresServer) -> None:
    make_server(pg)
    postgres_server.pause()
    began_mono = clock.mono()
    with pytest.raises(StoreUnavailable, match="has not answered"):
        pg.ping(0.4)
    waited_s = clock.mono() - began_mono
    postgres_server.resume()
    assert 0.4 <= waited_s < 3.0
    assert beat(pg).is_current


def test_f05_server_frozen_inside_a_transaction_does_not_hold_up_the_reaper(
    pg: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_IDLE_IN_TRANSACTION_LIMIT_S", 1)
    make_server(pg)
    is_holding, may_go_on = threading.Event(), threading.Event()
    errors: list[StoreUnavailable] = []

    def freeze() -> None:
        try:
            with pg.begin() as connection:
                connection.execute(update(tables.servers).values(state=ServerState.ACCEPTING))
                is_holding.set()
                may_go_on.wait(timeout=30)
                connection.execute(select(tables.servers))
        except StoreUnavailable as error:
            errors.append(error)

    thread = threading.Thread(target=freeze)
    thread.start()
    try:
        assert is_holding.wait(timeout=10)
        assert lose(pg)
    finally:
        may_go_on.set()
        thread.join(timeout=20)
    assert len(errors) == 1
    assert servers.get(pg, "server-1").state is ServerState.LOST


def test_statement_that_takes_too_long_is_unavailable(pg: Store) -> None:
    with pytest.raises(StoreUnavailable, match="statement timeout"), pg.begin(limit_s=0.2) as connection:
        connection.execute(text("SELECT pg_sleep(5)"))


def test_pool_that_is_used_up_is_unavailable(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(sqlite_url, pool_size=1)
    monkeypatch.setattr(store._engine.pool, "_timeout", 0.1)
    with store.read(), pytest.raises(StoreUnavailable, match="pool"):
        store.ping(1.0)
    store.dispose()


def test_clock_of_the_database_is_compared(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(store.clock_skew_s()) < 1.0
    ahead = datetime(2200, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(clock, "utc_now", lambda: ahead)
    assert (store.clock_skew_s() < -1e6) is (store.dialect == "postgresql")


@pytest.mark.parametrize(
    "url", ["mysql://ann:hush@db/x", "sqlite://", "sqlite:///:memory:", "hush", "://hush@"]
)
def test_other_databases_are_refused_without_a_word_of_secrets(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Store(url)
    assert "hush" not in str(caught.value)


def test_password_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(f"postgresql://ann:hush@127.0.0.1:{free_port()}/shop?connect_timeout=2")
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable) as caught:
        store.ping(1.0)
    store.dispose()
    assert "hush" not in repr(store) + str(caught.value) + caplog.text


def test_url_comes_before_the_defaults(postgres_url: str) -> None:
    store = Store(postgres_url + "?application_name=mine")
    with store.read() as connection:
        name = connection.execute(text("SHOW application_name")).scalar()
    store.dispose()
    assert name == "mine"


def test_sqlite_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("CREATE TABLE a (b)")
    writer.execute("BEGIN IMMEDIATE")
    store = Store(f"sqlite:///{path}")
    # The switch to WAL needs the file for itself; while another writes, SQLite refuses it without a wait.
    leaving = threading.Timer(0.3, lambda: writer.execute("COMMIT"))
    leaving.start()
    try:
        store.ping(1.0)
    finally:
        leaving.join()
        writer.close()
    with store.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    store.dispose()


def test_sqlite_file_is_opened_by_many_processes_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    script = (
        "import sys; from agent.store import engine, migrate; s = engine.Store(sys.argv[1]); "
        "migrate.upgrade(s); s.dispose()"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, url]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]


def test_agent_itself_loads_no_alembic_and_psycopg_only_for_postgresql() -> None:
    script = (
        "import sys; from agent.store import attempts, audit, builds, engine, orders, output, schema, servers; "
        "sys.exit('alembic' in sys.modules or 'psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
