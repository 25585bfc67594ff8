"""PostgreSQL: how to connect, and connections that never wait longer than they are told to.

Imported only when the database is PostgreSQL. Knows psycopg and nothing of the project's tables.
"""

from __future__ import annotations

import math
from typing import Any

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, event

from agent.clock import Deadline

CONNECT_TIMEOUT_S = 5
# A dead network is seen within 10 s: data not acknowledged for so long, or 5 s of silence and 3 lost probes.
_CONNECT_ARGUMENTS: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "build-agent",
    "client_encoding": "utf8",
}
# A client that freezes inside a transaction (a stopped process, a cut cable) must not hold its row locks
# until somebody notices: the reaper waits for them. Far below the default lease of 30 s.
_IDLE_IN_TRANSACTION_LIMIT_S = 10


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose every wait for the server ends after `limit_s`.

    The server's own `statement_timeout` comes first. But a server that is stopped or swaps keeps no time, and
    its kernel goes on acknowledging packets, so no TCP timeout would ever fire: without this limit a
    heartbeat would hang for as long as the server does.
    """

    limit_s: float = 20.0

    def wait(self, gen: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
        """Wait for the server as psycopg does, at most `limit_s` seconds."""
        return super().wait(self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: PQGen[Any]) -> PQGen[Any]:
        deadline = Deadline.after(self.limit_s)
        try:
            wanted = next(gen)
            while True:
                # psycopg wakes its generators every 0.1 s with a "not ready" (falsy), to let Ctrl-C in.
                ready = yield wanted
                if not ready and deadline.is_passed:
                    # What the server would still answer belongs to nobody: the connection is of no more use.
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has not answered for {self.limit_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


def engine_arguments() -> dict[str, Any]:
    """Return what `create_engine` has to know for PostgreSQL."""
    return {
        # No server-side prepared statements: behind PgBouncer in transaction mode they'd be another client's.
        # Autocommit, because `_begin` opens transactions itself.
        "connect_args": {"prepare_threshold": None, "autocommit": True},
        "use_native_hstore": False,
    }


def install(engine: Engine) -> None:
    """Make `engine` open bounded connections, and transactions with their limits in one round trip."""
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "begin", _begin)


def _connect(_dialect: Any, _record: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    # What the URL says (`?connect_timeout=2`) comes before our defaults.
    return BoundedConnection.connect(*arguments, **(_CONNECT_ARGUMENTS | named))


def _begin(connection: Connection) -> None:
    """Open a transaction.

    The limits are set here and not when connecting: PgBouncer gives each transaction another connection of
    its own and refuses settings at start-up. One string, so it costs no round trip more than BEGIN alone.
    """
    options = connection.get_execution_options()
    limit_s: float = options["limit_s"]
    driver = connection.connection.driver_connection
    if isinstance(driver, BoundedConnection):
        driver.limit_s = limit_s + min(5.0, limit_s / 4)
    # What only reads sees one moment, as with SQLite; what writes sees what others wrote before each statement.
    kind = "READ COMMITTED READ WRITE" if options["is_writing"] else "REPEATABLE READ READ ONLY"
    connection.exec_driver_sql(
        f"BEGIN ISOLATION LEVEL {kind};"
        f"SET LOCAL statement_timeout = {math.ceil(limit_s * 1000)};"
        f"SET LOCAL idle_in_transaction_session_timeout = {_IDLE_IN_TRANSACTION_LIMIT_S * 1000}"
    )
