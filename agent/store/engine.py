"""The connection to the database: one `Store` a process, short transactions, one small set of errors.

Owns URLs, pools, transactions, time limits. Knows no table, and not what to do about a database that is away:
callers decide whether and when to try again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import URL, Connection, DateTime, create_engine, exc, func, make_url, select, text

from agent import clock
from agent.errors import SettingsError
from agent.store.failure import translate

# What functions take that work inside a transaction, for those who may not know the library.
Transaction = Connection

STATEMENT_LIMIT_S = 15.0
# Longer than any transaction of ours should take, shorter than a lease: a thread that gets no connection says
# so.
_POOL_TIMEOUT_S = 10.0


class Store:
    """A database and a pool of connections to it. Threads may share it; it connects on first use.

    Args:
        url: `postgresql://...` (psycopg 3) or `sqlite:////absolute/path`. Keys that libpq knows may follow as
            a query and come before the defaults here.
        pool_size: connections at most; more threads than that wait for each other.
    Raises: SettingsError for a URL that can't be read or names another database.
    """

    def __init__(self, url: str, *, pool_size: int = 4) -> None:
        self._url = _parse(url)
        if self._url.get_backend_name() == "postgresql":
            from agent.store import postgres as backend
        else:
            from agent.store import sqlite as backend  # type: ignore[no-redef]
        self._engine = create_engine(
            self._url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=_POOL_TIMEOUT_S,
            pool_use_lifo=True,
            # Error texts reach logs and consoles; output and definitions must not.
            hide_parameters=True,
            **backend.engine_arguments(),
        )
        backend.install(self._engine)

    def __repr__(self) -> str:
        return f"Store({self._url.render_as_string(hide_password=True)})"

    @property
    def dialect(self) -> str:
        """`postgresql` or `sqlite`."""
        return self._engine.dialect.name

    @contextmanager
    def begin(self, *, limit_s: float = STATEMENT_LIMIT_S) -> Iterator[Connection]:
        """Open a transaction that may write; commit at the end, roll back on any exception.

        Args:
            limit_s: seconds each statement may take, waiting for locks included.
        Raises: StoreUnavailable (nothing was written; only if the connection broke in the very commit,
            everything may have been, so what is sent again has to be idempotent); StoreRejected;
            SchemaMismatch.
        """
        with self._transaction(is_writing=True, limit_s=limit_s) as connection:
            yield connection

    @contextmanager
    def read(self, *, limit_s: float = STATEMENT_LIMIT_S) -> Iterator[Connection]:
        """Open a transaction that only reads, and sees the database as it was at its first statement.

        Raises as `begin` does.
        """
        with self._transaction(is_writing=False, limit_s=limit_s) as connection:
            yield connection

    def ping(self, timeout_s: float) -> None:
        """Ask the database for a sign of life.

        Args:
            timeout_s: seconds for the answer; connecting, where no connection is open, may take 5 more.
        Raises: StoreUnavailable.
        """
        # SQLite answers `select 1` without a look at its file.
        probe = "select 1" if self.dialect == "postgresql" else "pragma schema_version"
        with self.read(limit_s=timeout_s) as connection:
            connection.execute(text(probe))

    def clock_skew_s(self) -> float:
        """Return by how many seconds the database's clock is ahead of ours; 0.0 where it is ours.

        Half the round trip is the error of measurement. Raises: StoreUnavailable.
        """
        if self.dialect != "postgresql":
            return 0.0
        with self.read() as connection:
            asked_at = clock.utc_now()
            theirs: datetime = connection.execute(
                select(func.clock_timestamp(type_=DateTime(timezone=True)))
            ).scalar_one()
            answered_at = clock.utc_now()
        return (theirs - (asked_at + (answered_at - asked_at) / 2)).total_seconds()

    def dispose(self) -> None:
        """Close the connections that are not in use; the store opens new ones when it is used again."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, is_writing: bool, limit_s: float) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                connection.execution_options(is_writing=is_writing, limit_s=limit_s)
                with connection.begin():
                    yield connection
        except exc.SQLAlchemyError as error:
            raise translate(error) from error


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        # The error's own text would repeat the URL, password included.
        raise SettingsError("database_url: not a URL such as postgresql://user@host/name") from error
    drivers: dict[str, Any] = {
        "postgresql": "postgresql+psycopg",
        "postgres": "postgresql+psycopg",
        "postgresql+psycopg": "postgresql+psycopg",
        "sqlite": "sqlite",
    }
    if parsed.drivername not in drivers:
        raise SettingsError(
            f"database_url: {parsed.drivername}:// is not supported, only postgresql:// and sqlite://"
        )
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise SettingsError("database_url: SQLite needs a file, such as sqlite:////var/lib/build-agent/db")
    return parsed.set(drivername=drivers[parsed.drivername])
