"""SQLite: write-ahead log, explicit transactions and the pragmas of each connection.

Imported only when the database is SQLite. One machine, one file: any number of readers beside one writer.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, event

from agent import clock
from agent.clock import Deadline

# How long a writer waits for another; as long as a statement may take on PostgreSQL.
_BUSY_TIMEOUT_S = 15.0


def engine_arguments() -> dict[str, Any]:
    """Return what `create_engine` has to know for SQLite."""
    return {
        "poolclass": QueuePool,
        # The pool hands a connection to one thread at a time, whichever it is. No isolation level: `_begin`
        # opens transactions itself, because the module's own BEGIN is late and DEFERRED.
        "connect_args": {
            "timeout": _BUSY_TIMEOUT_S,
            "check_same_thread": False,
            "isolation_level": None,
        },
    }


def install(engine: Engine) -> None:
    """Make `engine` set up each connection and open its transactions explicitly."""
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)


def _set_up(connection: sqlite3.Connection, _record: Any) -> None:
    # The view over output hands out whatever bytes a step wrote; text that is not UTF-8 must not fail a read.
    connection.text_factory = _decode
    _use_wal(connection)
    # In WAL mode NORMAL survives a killed process; a power cut may undo the last commits, never corrupt.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: sqlite3.Connection) -> None:
    # The switch, made once in a file's life, answers "locked" at once while another writes: SQLite calls no
    # busy handler for that.
    deadline = Deadline.after(_BUSY_TIMEOUT_S)
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or deadline.is_passed:
                raise
            clock.sleep(0.01)
        else:
            return


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _begin(connection: Connection) -> None:
    """Open a transaction; a writer takes the lock at once.

    A deferred transaction that reads first and writes later fails with "database is locked" when another
    wrote in between, without waiting: its snapshot is old. IMMEDIATE makes writers queue, which is what every
    guarded update of this package relies on where PostgreSQL locks rows.
    """
    options = connection.get_execution_options()
    connection.exec_driver_sql(
        f"PRAGMA busy_timeout = {int(min(options['limit_s'], _BUSY_TIMEOUT_S) * 1000)}"
    )
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options["is_writing"] else "BEGIN")
