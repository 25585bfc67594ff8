"""Turn what database drivers raise into the project's errors, told apart by what the caller can do.

Knows SQLSTATE classes and SQLite's words; imports no driver. Never repeats parameters: they may hold output.
"""

from __future__ import annotations

from sqlalchemy import exc

from agent.errors import SchemaMismatch, StoreError, StoreRejected, StoreUnavailable

# https://www.postgresql.org/docs/current/errcodes-appendix.html: 22 data exception, 23 integrity constraint
# violation, 54 program limit exceeded (a key too long for an index). All else may pass: 08 connection,
# 25006 a standby, 40 deadlock, 53 disk full, 57 shutting down, a time limit, a right not granted yet.
_REJECTED_CLASSES = ("22", "23", "54")
# Undefined table, column, function and schema: migrations are missing.
_SCHEMA_STATES = ("42P01", "42703", "42883", "3F000")
UPGRADE = "run `build-agent db upgrade`"


def translate(error: exc.SQLAlchemyError) -> StoreError:
    """Return the error to raise for one of SQLAlchemy's.

    Whatever isn't known to be about the data itself counts as unavailable: to try again costs little, to set
    good output aside would lose it.
    """
    if isinstance(error, exc.TimeoutError):
        return StoreUnavailable("the database: every connection of the pool has been busy for too long")
    if not isinstance(error, exc.StatementError) or error.orig is None:
        return StoreUnavailable(f"the database: {_first_line(error)}")
    if not isinstance(error, exc.DBAPIError):
        # A value could not even be handed to the driver, such as a naive datetime.
        return StoreRejected(f"not a value for the database: {_first_line(error.orig)}")
    # By name: only one of the drivers is loaded.
    if type(error.orig).__module__ == "sqlite3":
        return _from_sqlite(error.orig)
    return _from_state(error.orig)


def _from_state(orig: BaseException) -> StoreError:
    state = getattr(orig, "sqlstate", None) or ""
    if state in _SCHEMA_STATES:
        return SchemaMismatch(f"the database lacks a part of the schema ({_first_line(orig)}): {UPGRADE}")
    # Without a SQLSTATE, the driver itself refused a value (DataError) or lost the server (OperationalError).
    if state[:2] in _REJECTED_CLASSES or (not state and type(orig).__name__ == "DataError"):
        return StoreRejected(f"the database refused the data: {_first_line(orig)}")
    return StoreUnavailable(f"the database: {_first_line(orig)}")


def _from_sqlite(orig: BaseException) -> StoreError:
    text = _first_line(orig)
    if text.startswith(("no such table", "no such column", "no such view")) or "has no column named" in text:
        return SchemaMismatch(f"the database lacks a part of the schema ({text}): {UPGRADE}")
    if type(orig).__name__ in ("IntegrityError", "DataError", "InterfaceError"):
        return StoreRejected(f"the database refused the data: {text}")
    return StoreUnavailable(f"the database: {text}")


def _first_line(error: BaseException) -> str:
    """Return the driver's first line; later ones quote rows and statements."""
    diagnosis = getattr(error, "diag", None)
    text = getattr(diagnosis, "message_primary", None) or str(error)
    return text.strip().partition("\n")[0] or type(error).__name__
