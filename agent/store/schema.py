"""The schema's version: what the database has against what this version of the agent was written for.

Reads one table of alembic's without importing alembic, which the agent itself never needs.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

from agent.errors import SchemaMismatch
from agent.store.engine import Store
from agent.store.failure import UPGRADE

# The newest revision in migrations/versions; a test holds the two equal.
HEAD = "0001"


def current(store: Store) -> str | None:
    """Return the revision that the database has, `None` when it has none yet. Raises: StoreUnavailable."""
    with store.read() as connection:
        return read_revision(connection)


def read_revision(connection: Connection) -> str | None:
    """Return the revision as a transaction sees it."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def check(store: Store) -> None:
    """Make sure the database's schema is this version's.

    Raises: SchemaMismatch, which says what to do; StoreUnavailable.
    """
    revision = current(store)
    if revision is None:
        raise SchemaMismatch(f"the database holds no schema yet: {UPGRADE}")
    refuse_newer(revision)
    if revision != HEAD:
        raise SchemaMismatch(f"the database has schema {revision}, this agent needs {HEAD}: {UPGRADE}")


def refuse_newer(revision: str) -> None:
    """Raise SchemaMismatch for a schema that only a later version knows."""
    # Revisions are numbers of four digits, so they compare as text.
    if revision > HEAD:
        raise SchemaMismatch(
            f"the database has schema {revision}, this agent knows {HEAD} at most: use a newer agent"
        )
