"""The schema's version: what the database has against what this version of the agent was written for.

An agent works with its own schema, and with every later one that says so: `schema_compatibility` holds the oldest
schema whose agents still do. Reads a table of alembic's without importing alembic, which the agent itself never
needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, inspect, select, text

from agent.errors import SchemaMismatch
from agent.store.engine import Store
from agent.store.failure import UPGRADE
from agent.store.tables import schema_compatibility

# The newest revision in migrations/versions; a test holds the two equal.
HEAD = "0005"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The schema of a database, and the oldest that an agent may have been written for to work with it.

    Revisions are numbers of four digits, so they compare as text.
    """

    revision: str
    compatible_from: str

    @property
    def is_newer(self) -> bool:
        """Whether a later version of the agent has upgraded it."""
        return self.revision > HEAD


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


def check(store: Store) -> Standing:
    """Make sure that this version works with the database's schema, and say how that stands.

    Raises: SchemaMismatch, which says what to do; StoreUnavailable.
    """
    with store.read() as connection:
        revision = read_revision(connection)
        if revision is None:
            raise SchemaMismatch(f"the database holds no schema yet: {UPGRADE}")
        if revision < HEAD:
            raise SchemaMismatch(f"the database has schema {revision}, this agent needs {HEAD}: {UPGRADE}")
        return read_standing(connection, revision)


def read_standing(connection: Connection, revision: str) -> Standing:
    """Return how a schema stands that is this version's or a later one's.

    Raises: SchemaMismatch when this version is too old for it.
    """
    # No row says no more than that nobody may be older than the schema itself.
    oldest = connection.execute(select(schema_compatibility.c.compatible_from)).scalar() or revision
    if oldest > HEAD:
        raise SchemaMismatch(
            f"the database has schema {revision}, which works with agents from schema {oldest} on; "
            f"this one was written for {HEAD}: use a newer agent"
        )
    return Standing(revision=revision, compatible_from=oldest)
